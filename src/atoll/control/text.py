"""What the command line and reports say, in English and Chinese: the English text is the key."""

from __future__ import annotations

import os
from collections.abc import Sequence

LANGUAGES = ("en", "zh")

ZH = {
    # commands and options
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
    "the seed": "随机种子",
    "the folder for the run": "保存运行结果的文件夹",
    "go on with the run in that folder": "继续该文件夹中的运行",
    "print one JSON object": "输出一个 JSON 对象",
    "a Python file with parts of your own": "含有自定义部件的 Python 文件",
    "also train each site alone and all data pooled, to compare": "同时训练各站点单独模型和数据合并模型，用于比较",
    "language of the output": "输出语言",
    "list data sets": "列出数据集",
    "describe a data set": "描述一个数据集",
    "deal a data set to clients and show who gets what": "把数据集分给客户端并显示分配结果",
    "measure how unlike the clients are, and recommend an algorithm": "度量客户端差异并推荐算法",
    "a name, a file or a folder": "名称、文件或文件夹",
    "number of clients": "客户端数量",
    "how to deal, as in iid or dirichlet,alpha=0.3": "划分方式，例如 iid 或 dirichlet,alpha=0.3",
    "the label column": "标签列",
    "the column that names the site": "站点列",
    "write a picture": "保存图片",
    "write one CSV file per client": "为每个客户端写一个 CSV 文件",
    "only parts of this kind": "只列出这一类部件",
    "the folder to make": "要创建的文件夹",
    "the folder of a run": "运行文件夹",
    "show this help": "显示帮助",
    "who certifies the members of a federation": "谁为联邦成员签发证书",
    "make a federation's own root": "创建联邦自己的根证书",
    "use a company's root or intermediate": "使用企业的根证书或中间证书",
    "what stands in the folder, without its keys": "显示文件夹内容，不含密钥",
    "the folder, a coordinator's DIR/pki": "文件夹，即协调端的 DIR/pki",
    "the federation's name": "联邦名称",
    "keep the root's key in this folder and certify by an intermediate": "把根密钥放在此文件夹，由中间证书签发",
    "the root certificate, PEM: what members pin": "根证书（PEM），由成员固定信任",
    "certificates from the key's own up to below the root, PEM": "从密钥自身的证书到根证书之下的各级证书（PEM）",
    "the private key that certifies, PEM": "用于签发的私钥（PEM）",
    "tokens that let members and operators in": "成员和操作者的准入令牌",
    "token": "令牌",
    "make a token": "创建令牌",
    "list tokens": "列出令牌",
    "make a token worthless": "作废令牌",
    "client or edge, for one enrolment; viewer, operator or admin, for the API": "client 或 edge 用于一次注册；viewer、operator 或 admin 用于 API",
    "whom the token is for": "令牌的持有者",
    "hours until it ends": "有效小时数",
    "the token's id, as list shows it": "令牌编号，见列表",
    "fingerprint": "指纹",
    "role": "角色",
    "until": "有效期至",
    "used": "已使用",
    "ended": "已过期",
    "open": "未使用",
    "revoked": "已作废",
    "state": "状态",
    "federation": "联邦",
    "root ends": "根证书到期",
    "authority ends": "签发证书到期",
    "certificate ends": "证书到期",
    "coordinator": "协调端",
    "hosts": "主机",
    "COMMAND": "命令",
    "arguments": "参数",
    "options": "选项",
    "usage": "用法",
    # while and after it runs
    "error": "错误",
    "stopped; go on with": "已停止；继续运行请用",
    "stopped": "已停止",
    "for comparison: each site alone, all data pooled": "用于比较：各站点单独训练、数据合并训练",
    "round": "轮次",
    "rounds": "轮次",
    "in round": "所在轮次",
    "clients": "客户端",
    "client": "客户端",
    "rows": "行数",
    "test rows": "测试行数",
    "labels": "标签",
    "model": "模型",
    "report": "报告",
    "run": "运行",
    "algorithm": "算法",
    "metric": "指标",
    "last": "最后",
    "best": "最佳",
    "accuracy": "准确率",
    "loss": "损失",
    "auc": "AUC",
    "mse": "均方误差",
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
    "seconds": "秒",
    "next": "接下来",
    "stopped early": "提前停止",
    # the report
    "en": "zh",
    "seed": "种子",
    "summary": "摘要",
    "in a round": "每轮",
    "a round": "每轮",
    "virtual time": "虚拟时间",
    "time taken": "用时",
    "eight of ten sites": "八成站点",
    "by round": "按轮次",
    "on all test rows, by round": "全部测试数据，按轮次",
    "all test rows": "全部测试数据",
    "Site by site": "各站点",
    "site by site": "各站点",
    "site": "站点",
    "every site": "全部站点",
    "One dot is one site, on its own test rows": "每个点是一个站点在自己测试数据上的结果",
    "The bar is the mean, the ring the mean of the worst tenth": "竖线为平均值，圆圈为最差十分之一的平均值",
    "Bytes in each round": "每轮字节数",
    "Bytes so far": "累计字节数",
    "models sent down, updates sent up": "下发模型，上传更新",
    "Staleness": "陈旧度",
    "how many steps the model had moved while a client trained": "客户端训练期间模型前进的步数",
    "steps": "步数",
    "updates": "更新数",
    "Failures": "失败",
    "tasks brought nothing": "个任务没有贡献",
    "evaluations at sites failed": "次站点评估失败",
    "times": "次数",
    "reason": "原因",
    "The job": "作业",
    "Where it ran": "运行环境",
    "value": "值",
    "numbers": "数据",
}


def language(argv: Sequence[str]) -> str:
    """The language to speak: the last `--lang`, else the environment's; "en" unless it is Chinese."""
    chosen = ""
    for i, word in enumerate(argv):
        if word == "--lang" and i + 1 < len(argv):
            chosen = argv[i + 1]
        elif word.startswith("--lang="):
            chosen = word.removeprefix("--lang=")
    system = next((v for k in ("LC_ALL", "LC_MESSAGES", "LANG") if (v := os.environ.get(k))), "")
    return chosen or ("zh" if system.startswith("zh") else "en")


class Texts:
    """`say(text)`: the text in the language that was chosen, itself where there is no other."""

    def __init__(self, language: str) -> None:
        self._table = ZH if language == "zh" else {}

    def __call__(self, text: str) -> str:
        return self._table.get(text, text)
