// Two pictures: a metric by round, and the ring of the federation. Text enters as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export function shape(name, values = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// Round numbers around [low, high]: what an axis shows.
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12);
  const found = [];
  for (let at = Math.floor(low / step + 1e-9) * step; at < high + step - 1e-9; at += step) found.push(Number(at.toPrecision(10)));
  return found;
}

// points: [round, value]; last: the last round there will be.
export function curve(points, last, label) {
  const [W, H, left, right, top, bottom] = [560, 348, 44, 14, 12, 34];
  const picture = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  const values = points.map((p) => p[1]);
  const rows = ticks(Math.min(...values), Math.max(...values), 4);
  const [low, high] = [rows[0], Math.max(rows[rows.length - 1], rows[0] + 1e-9)];
  const x = (round) => left + ((W - left - right) * round) / Math.max(1, last);
  const y = (value) => H - bottom - ((H - top - bottom) * (value - low)) / (high - low);
  for (const row of rows) {
    picture.append(shape("line", { class: "grid", x1: left, x2: W - right, y1: y(row), y2: y(row) }));
    picture.append(shape("text", { x: left - 8, y: y(row) + 4, "text-anchor": "end" }, String(row)));
  }
  for (const column of ticks(0, Math.max(1, last), 6).filter((t) => t <= last && Number.isInteger(t))) {
    picture.append(shape("text", { x: x(column), y: H - bottom + 18, "text-anchor": "middle" }, String(column)));
  }
  const path = points.map(([r, v], i) => `${i ? "L" : "M"}${x(r).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const [first, end] = [points[0], points[points.length - 1]];
  picture.append(shape("path", { class: "wash", d: `${path}L${x(end[0])} ${y(low)}L${x(first[0])} ${y(low)}Z` }));
  picture.append(shape("path", { class: "curve", d: path }));
  picture.append(shape("circle", { class: "tip", cx: x(end[0]), cy: y(end[1]), r: 4 }));
  reading(picture, points, { x, y, W, H, top, bottom, left, right });
  return picture;
}

// A cross and the value under the pointer.
function reading(picture, points, box) {
  const cross = shape("line", { class: "cross", y1: box.top, y2: box.H - box.bottom, visibility: "hidden" });
  const text = shape("text", { class: "read", y: box.top + 4, visibility: "hidden" });
  picture.append(cross, text);
  picture.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - picture.getBoundingClientRect().left) / picture.clientWidth) * box.W;
    const near = points.reduce((a, b) => (Math.abs(box.x(b[0]) - at) < Math.abs(box.x(a[0]) - at) ? b : a));
    const place = box.x(near[0]);
    for (const end of ["x1", "x2"]) cross.setAttribute(end, place);
    text.setAttribute("x", place + (place > box.W * 0.75 ? -8 : 8));
    text.setAttribute("text-anchor", place > box.W * 0.75 ? "end" : "start");
    text.textContent = `${near[0]}: ${near[1].toFixed(4)}`;
    for (const part of [cross, text]) part.setAttribute("visibility", "visible");
  });
  picture.addEventListener("pointerleave", () => {
    for (const part of [cross, text]) part.setAttribute("visibility", "hidden");
  });
}

// nodes: {name, role, parent, look, busy}. Clients stand on the ring, edges between it and the middle.
export function ring(nodes, label) {
  const [W, H] = [380, 320];
  const [cx, cy, outer, inner] = [W / 2, H / 2, 122, 64];
  const picture = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  const edges = nodes.filter((n) => n.role === "edge");
  const known = new Set(edges.map((e) => e.name));
  const clients = nodes.filter((n) => n.role === "client");
  const home = (c) => (known.has(c.parent) ? c.parent : "");
  clients.sort((a, b) => home(a).localeCompare(home(b)) || a.name.localeCompare(b.name, undefined, { numeric: true }));
  const turn = (i, of) => -Math.PI / 2 + (2 * Math.PI * (i + 0.5)) / Math.max(1, of);
  const at = new Map();
  clients.forEach((c, i) => at.set(c.name, turn(i, clients.length)));
  edges.forEach((e, i) => {
    const below = clients.filter((c) => home(c) === e.name).map((c) => at.get(c.name));
    at.set(e.name, below.length ? below.reduce((a, b) => a + b) / below.length : turn(i, edges.length));
  });
  const spot = (node, r) => [cx + r * Math.cos(at.get(node.name)), cy + r * Math.sin(at.get(node.name))];
  const way = (from, to, busy) => shape("line", { class: busy ? "way busy" : "way", x1: from[0], y1: from[1], x2: to[0], y2: to[1] });
  const dots = [];
  picture.append(shape("circle", { class: "reefline", cx, cy, r: outer }));
  for (const e of edges) {
    picture.append(way(spot(e, inner), [cx, cy], e.busy));
    dots.push(dot(spot(e, inner), 7, `edge ${e.look}`, e));
  }
  const r = Math.max(2.5, Math.min(9, 330 / Math.max(1, clients.length)));
  for (const c of clients) {
    const parent = edges.find((e) => e.name === home(c));
    picture.append(way(spot(c, outer), parent ? spot(parent, inner) : [cx, cy], c.busy));
    dots.push(dot(spot(c, outer), r, `site ${c.look}`, c));
    if (clients.length <= 24) dots.push(named(c, at.get(c.name), cx, cy, outer + r + 7));
  }
  dots.push(shape("circle", { class: "hub", cx, cy, r: 11 }));
  picture.append(...dots);
  return picture;
}

function dot([cx, cy], r, kind, node) {
  const made = shape("circle", { class: kind, cx, cy, r });
  made.append(shape("title", {}, `${node.name}: ${node.text}`));
  return made;
}

function named(node, angle, cx, cy, r) {
  const [x, y] = [cx + r * Math.cos(angle), cy + r * Math.sin(angle)];
  const anchor = Math.abs(Math.cos(angle)) < 0.3 ? "middle" : Math.cos(angle) > 0 ? "start" : "end";
  const short = node.name.length > 14 ? `${node.name.slice(0, 13)}…` : node.name;
  return shape("text", { class: "name", x, y: y + 4, "text-anchor": anchor }, short);
}
