"""The routes of the API, by topic: each asks one verb of the desk and answers what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from . import admin, desk, health
from . import rollouts as rolled
from .asked import Drain, NewToken, Nothing, Plain, Promote, Prune, RollBack, RollOut, Submit
from .auth import Caller
from .metrics import scrape
from .news import events as news
from .office import Office

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[int, Query(ge=-1, lt=2**63)]
Text = Annotated[str | None, Query(max_length=128)]
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/draw.js": ("draw.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
}


def public(app: FastAPI, office: Office) -> None:
    """What anybody may see: the page's shell, that the server lives, the root to pin."""
    for route, (name, kind) in PAGE.items():
        text = resources.files(__package__).joinpath("web", name).read_text("utf-8")
        app.get(route, include_in_schema=False)(_file(text, kind))

    @app.get("/healthz", tags=["health"])
    async def alive() -> Any:
        """The process answers."""
        return {"alive": True}

    @app.get("/readyz", tags=["health"])
    async def ready() -> Any:
        """Work is taken: 200, or 503 where the store takes no writes or the engine is not up."""
        found = await office.ask(lambda store: store.health())
        good = bool(found["ok"]) and not office.busy()
        return Plain({"ready": good}, 200 if good else 503)

    @app.get("/v1/root", tags=["health"], response_class=PlainTextResponse)
    async def root() -> Any:
        """The federation's root certificate, PEM: compare its SHA-256 with your token's."""
        return PlainTextResponse(office.root, media_type="application/x-pem-file")


def federation(app: FastAPI, office: Office) -> None:
    """The federation as a whole: who one is to it, how it is, what happens."""

    @app.get("/v1/openapi.json", include_in_schema=False)
    async def openapi() -> Any:
        return app.openapi()

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Any:
        """Figures for Prometheus; its scrape configuration takes a viewer's token as bearer."""
        text = await office.ask(scrape, office)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/federation", tags=["federation"])
    async def federation(request: Request) -> Any:
        """The federation, and who you are to it."""
        who: Caller = request.state.caller
        about = {"name": office.federation, "version": app.version, "fingerprint": office.fingerprint}
        return {**about, "now": office.clock(), "caller": who.name, "role": who.role}

    @app.get("/v1/health", tags=["health"])
    async def look_at_health() -> Any:
        """Store, disk, schema, certificate, versions, and why no work is taken if none is."""
        return await office.ask(health.report, office)

    @app.get("/v1/overview", tags=["federation"])
    async def overview(run: Text = None) -> Any:
        """What the page shows: members, the newest runs, the rounds of one run."""
        seen = _there(await office.ask(desk.overview, office.live(), office.clock(), run), "run")
        if seen["run"] is not None:
            seen["run"] |= office.about(seen["run"]["id"])
        return {"federation": office.federation, "version": app.version, **seen}

    @app.get("/v1/events", tags=["federation"])
    async def events(
        after: After = 0,
        limit: Limit = 200,
        wait: Annotated[float, Query(ge=0, le=30)] = 0.0,
        run: Text = None,
    ) -> Any:
        """State changes after event `after` (-1: only say where the log ends), waiting for some."""
        return await news(office, after, limit, wait, run)


def runs(app: FastAPI, office: Office) -> None:
    """Jobs and what became of them."""

    @app.get("/v1/runs", tags=["runs"])
    async def runs(state: Text = None, limit: Limit = 100) -> Any:
        """The newest runs; queued ones with their place in the queue, and what a running one waits for."""
        found = await office.ask(desk.runs, state, limit)
        at_work = {r["id"]: office.about(r["id"]) for r in found if r["state"] == "running"}
        return {"runs": [_waiting(r, at_work.get(r["id"], {})) for r in found]}

    @app.get("/v1/runs/{run}", tags=["runs"])
    async def run(run: str) -> Any:
        """One run, with its job file's values."""
        found = _there(await office.ask(desk.run, run), "run")
        return {"run": {**found, **office.about(run)}}

    @app.get("/v1/runs/{run}/history", tags=["runs"])
    async def history(run: str, after: After = -1, first: After = -1, limit: Limit = 500) -> Any:
        """Records by round, those after round `after` (or, to begin with, `first`)."""
        rows = _there(await office.ask(desk.history, run, max(after, first), limit), "run")
        return {"rounds": rows, "next": rows[-1]["round"] if len(rows) == limit else None}

    @app.get("/v1/runs/{run}/logs", tags=["runs"])
    async def logs(run: str, limit: Limit = 500) -> Any:
        """What sites reported: tracebacks with cause and suggested fix."""
        return {"logs": _there(await office.ask(desk.logs, run, limit), "run")}

    @app.get("/v1/logs", tags=["nodes"])
    async def said(limit: Limit = 500) -> Any:
        """What was said of members and belongs to no run: a second session of one identity, for example."""
        return {"logs": await office.ask(desk.logs, "", limit)}

    @app.post("/v1/plans", tags=["runs"], status_code=201)
    async def plan(request: Request) -> Any:
        """Keep a plan's file, the body, for a job that is about to name it; files nobody names go."""
        return await office.ask(desk.keep_plan, await request.body())

    @app.post("/v1/runs", tags=["runs"], status_code=201)
    async def submit(body: Submit, request: Request) -> Any:
        """Check a job and queue it."""
        job = await asyncio.to_thread(desk.promised, body.job)
        return {"run": await office.ask(desk.submit, job, body.seed, request.state.caller.name)}

    @app.post("/v1/runs/{run}/stop", tags=["runs"])
    async def stop(run: str, request: Request, body: Nothing | None = None) -> Any:
        """End a run: a queued one at once, a running one after what is under way."""
        return {"run": _there(await office.ask(desk.stop, run, request.state.caller.name), "run")}


def nodes(app: FastAPI, office: Office) -> None:
    """Edges and clients."""

    @app.get("/v1/nodes", tags=["nodes"])
    async def nodes() -> Any:
        """Every member of the federation."""
        return {"nodes": await office.ask(desk.nodes, office.live(), office.clock())}

    @app.post("/v1/nodes/{name}/drain", tags=["nodes"])
    async def drain(name: str, request: Request, body: Drain | None = None) -> Any:
        """Give a member no new work, or work again."""
        on = True if body is None else body.on
        return _there(await office.ask(desk.drain, name, on, request.state.caller.name), "node")

    @app.post("/v1/nodes/{name}/revoke", tags=["nodes"])
    async def revoke(name: str, request: Request, body: Nothing | None = None) -> Any:
        """Shut a member out; its open streams are cut."""
        done = _there(await office.ask(desk.revoke, name, request.state.caller.name), "node")
        office.cut(name, "revoked")
        return done

    @app.post("/v1/nodes/{name}/readmit", tags=["nodes"])
    async def readmit(name: str, request: Request, body: Nothing | None = None) -> Any:
        """Let a revoked name enrol again, with a new token."""
        return _there(await office.ask(desk.readmit, name, request.state.caller.name), "node")

    @app.post("/v1/nodes/{name}/reinstate", tags=["nodes"])
    async def reinstate(name: str, request: Request, body: Nothing | None = None) -> Any:
        """Hold nothing against a member any more: it takes part again, and its record begins anew."""
        return _there(await office.ask(desk.reinstate, name, request.state.caller.name), "node")


def models(app: FastAPI, office: Office) -> None:
    """Registered models."""

    @app.get("/v1/models", tags=["models"])
    async def models(name: Text = None, run: Text = None) -> Any:
        """Registered models, newest version first; of one name, or from one run."""
        return {"models": await office.ask(desk.models, name, run)}

    @app.get("/v1/models/{name}/{version}", tags=["models"])
    async def model(name: str, version: str) -> Any:
        """One version of a model; `latest` is the newest."""
        return _there(await office.ask(desk.model, name, version), "model")

    @app.get("/v1/models/{name}/{version}/file", tags=["models"], response_class=FileResponse)
    async def file(name: str, version: str, form: Literal["safetensors", "onnx"] = "safetensors") -> Any:
        """The model's bytes as the registry holds them: safetensors, or a message with the ONNX graph."""
        path = _there(await office.ask(admin.model_path, name, version, form), "model")
        return FileResponse(path, media_type="application/octet-stream")


def rollouts(app: FastAPI, office: Office) -> None:
    """How versions of models come to members."""

    @app.get("/v1/rollouts/{name}", tags=["rollouts"])
    async def stages(name: str) -> Any:
        """Which version of a model is for all, which on trial, and how far every member is."""
        return _there(await office.ask(rolled.stages, name), "model")

    @app.post("/v1/rollouts/{name}", tags=["rollouts"], status_code=201)
    async def roll_out(name: str, body: RollOut, request: Request) -> Any:
        """Roll a version out: some members first, then all, in stages at each."""
        asked = (name, body.version, body.plan, body.reason, request.state.caller.name)
        return _there(await office.ask(rolled.roll_out, *asked), "model")

    @app.post("/v1/rollouts/{name}/promote", tags=["rollouts"])
    async def promote(name: str, request: Request, body: Promote | None = None) -> Any:
        """Have all members serve the version that is being rolled out."""
        reason = "" if body is None else body.reason
        return _there(await office.ask(rolled.promote, name, reason, request.state.caller.name), "model")

    @app.post("/v1/rollouts/{name}/rollback", tags=["rollouts"])
    async def roll_back(name: str, body: RollBack, request: Request) -> Any:
        """Have all members serve an earlier version."""
        asked = (name, body.to, body.reason, request.state.caller.name)
        return _there(await office.ask(rolled.roll_back, *asked), "model")


def records(app: FastAPI, office: Office) -> None:
    """Tokens, the audit, backups, retention: for administrators."""

    @app.get("/v1/tokens", tags=["tokens"])
    async def tokens() -> Any:
        """Tokens that were made, without their secrets."""
        return {"tokens": await office.ask(admin.tokens)}

    @app.post("/v1/tokens", tags=["tokens"], status_code=201)
    async def token(body: NewToken, request: Request) -> Any:
        """Make a token; this answer is the only place it ever stands in."""
        asked = (body.role, body.name, body.hours, request.state.caller.name)
        return await office.ask(admin.new_token, office, *asked)

    @app.delete("/v1/tokens/{token}", tags=["tokens"])
    async def forget(token: str, request: Request) -> Any:
        """Make a token worthless."""
        return _there(await office.ask(admin.forget, token, request.state.caller.name), "token")

    @app.get("/v1/audit", tags=["audit"])
    async def audit(seen: Annotated[str, Query(max_length=100)] = "") -> Any:
        """Verify the chain of events: the first row that was altered or is missing, if any.

        `seen`: an end noted earlier, `number:hash`, which the chain must still hold.
        """
        return await office.ask(admin.audit, seen)

    @app.post("/v1/backups", tags=["store"], status_code=201)
    async def backup(body: Nothing | None = None) -> Any:
        """Write a backup into the coordinator's own folder; it holds keys, so it does not travel."""
        return await office.ask(admin.backup, office)

    @app.post("/v1/prune", tags=["store"])
    async def prune(body: Prune, request: Request) -> Any:
        """Forget old runs and the blobs nobody needs."""
        return await office.ask(admin.prune, body.keep_days, body.keep_runs)


def _there(found: Any, what: str) -> Any:
    """What was found, or 404: the same for an id that never was and one that is none of the caller's."""
    if found is None:
        raise HTTPException(404, f"there is no such {what}")
    return found


def _waiting(run: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "waiting": about["waiting"]} if "waiting" in about else run


def _file(text: str, kind: str) -> Callable[[], Any]:
    async def file() -> Response:
        return Response(text, media_type=kind)

    return file
