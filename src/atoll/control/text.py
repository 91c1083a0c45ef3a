"""What the command line says, in English and Chinese: the English text is the key."""

from __future__ import annotations

import os
from collections.abc import Sequence

ZH = {
    "federated learning at the edge": "边缘联邦学习",
    "run a job over simulated clients": "在模拟客户端上运行作业",
    "look at data and deal it to clients": "查看数据并分给客户端",
    "every name a job may use": "作业可以使用的所有名称",
    "make a commented starter project": "生成带注释的起步项目",
    "write a run's report": "生成一次运行的报告",
    "compare runs": "比较多次运行",
    "print the version": "显示版本",
    "the job file": "作业文件",
    "change a value of the job, as in algorithm.mu=0.01": "修改作业中的值，例如 algorithm.mu=0.01",
    "the seed, instead of the job's": "随机种子，代替作业文件中的值",
    "the folder for the run": "保存运行结果的文件夹",
    "go on with the run in that folder": "继续该文件夹中的运行",
    "print one JSON object": "输出一个 JSON 对象",
    "a Python file with parts of your own": "含有自定义部件的 Python 文件",
    "also train each site alone and all data pooled, to compare": "同时训练各站点单独模型和数据合并模型，用于比较",
    "language of the output: en or zh": "输出语言：en 或 zh",
    "list data sets": "列出数据集",
    "describe a data set": "描述一个数据集",
    "deal a data set to clients and show who gets what": "把数据集分给客户端并显示分配结果",
    "measure how unlike the clients are, and recommend an algorithm": "度量客户端差异并推荐算法",
    "a name, a file or a folder": "名称、文件或文件夹",
    "number of clients": "客户端数量",
    "how to deal, as in dirichlet or dirichlet,alpha=0.3": "划分方式，例如 dirichlet 或 dirichlet,alpha=0.3",
    "the label column": "标签列",
    "the column that names the site": "站点列",
    "write a picture": "保存图片",
    "write one CSV file per client": "为每个客户端写一个 CSV 文件",
    "only parts of this kind": "只列出这一类部件",
    "the folder to make": "要创建的文件夹",
    "the folder of a run": "运行文件夹",
    "open the report in a browser": "在浏览器中打开报告",
    "error": "错误",
    "stopped; go on with --resume --out": "已停止；用 --resume --out 继续",
    "stopped": "已停止",
    "round": "轮次",
    "clients": "客户端",
    "rows": "行数",
    "time left": "剩余时间",
    "model": "模型",
    "report": "报告",
    "run": "运行",
    "trained": "训练方式",
    "mean over sites": "站点平均",
    "worst tenth": "最差十分之一",
    "spread": "离散度",
    "federated": "联邦",
    "each site alone": "各站点单独",
    "all data pooled": "数据合并",
    "sent up": "上行",
    "sent down": "下行",
    "kind": "类别",
    "name": "名称",
    "what it is": "说明",
    "client": "客户端",
    "labels": "标签",
    "seconds": "秒",
    "the model": "模型文件",
    "everything about this run": "本次运行的全部记录",
    "next": "接下来",
    "learner and data fit": "学习器与数据",
    "engine": "引擎",
    "stopped early": "提前停止",
    "made": "已生成",
}


def language(argv: Sequence[str]) -> str:
    """The language to speak: `--lang`, else $LANG; "en" unless it is Chinese."""
    for i, word in enumerate(argv):
        if word == "--lang" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith("--lang="):
            return word.removeprefix("--lang=")
    return "zh" if os.environ.get("LANG", "").startswith("zh") else "en"


class Texts:
    """`say(text)`: the text in the language that was chosen."""

    def __init__(self, language: str) -> None:
        self._table = ZH if language == "zh" else {}

    def __call__(self, text: str) -> str:
        return self._table.get(text, text)
