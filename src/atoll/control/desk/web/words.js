// What the page says, in English and Chinese; the English is the key.

const CHINESE = {
  Token: "令牌", Look: "查看", "The federation": "联邦", Sites: "站点", Runs: "运行",
  "It stays in this tab and goes to this server only. A viewer's token is enough: atoll token create --role viewer --name you":
    "令牌只保存在此标签页中，只发送给本服务器。viewer 令牌即可：atoll token create --role viewer --name you",
  "This page needs a token of the federation.": "本页需要联邦的令牌。",
  "That token is not valid here.": "该令牌在此无效。",
  live: "实时", "no answer from the server": "服务器无响应", "trying again": "正在重试",
  round: "轮次", members: "成员", "sent up": "上行", "sent down": "下行", "time taken": "用时",
  "no run yet": "尚无运行", "atoll submit job.toml makes one": "用 atoll submit job.toml 提交",
  "by round": "按轮次", best: "最佳", edges: "边缘节点", clients: "客户端", online: "在线", of: "/",
  site: "站点", through: "上级", doing: "状态", state: "状态", note: "备注", run: "运行", name: "名称",
  algorithm: "算法", metric: "指标", submitted: "提交时间", reason: "原因", coordinator: "协调器",
  "nobody has joined yet": "尚无成员加入", version: "版本", "a round": "每轮",
  queued: "排队中", running: "运行中", paused: "已暂停", stopping: "正在停止", done: "已完成", failed: "失败",
  stopped: "已停止", away: "离线", revoked: "已撤销", drained: "不接新任务", drift: "漂移", quarantined: "已隔离", suspect: "可疑", "set aside": "已排除", shadow: "影子", canary: "金丝雀", all: "全部", back: "已撤回", waiting: "等待", "waiting for clients": "等待客户端", "hold back": "暂不参与", "holds back": "暂不参与", since: "自", until: "至",
  "rows asked": "被询问行数", answered: "已回答", "passed on": "转问上级", "too late": "超时",
  hours: "时段", mains: "外接电源", battery: "电量", temperature: "温度", metered_bytes: "计费流量", duty: "工作占比", training: "训练中",
  evaluating: "评估中", sending: "上传中", receiving: "下载中", edge: "边缘节点", working: "工作中", accuracy: "准确率",
  loss: "损失", idle: "空闲", "a proxy ends TLS: signatures carry the trust": "代理终止 TLS，由签名保证信任", "the newest": "最新",
};

const chinese = navigator.language.toLowerCase().startsWith("zh");
document.documentElement.lang = chinese ? "zh" : "en";

export const say = (text) => (chinese && CHINESE[text]) || text;

export const number = (x) => (x === null || x === undefined ? "–" : Math.abs(x) < 1000 ? x.toFixed(4) : x.toPrecision(4));

export function size(bytes) {
  if (bytes === undefined || bytes === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < units.length - 1; unit += 1) bytes /= 1000;
  return `${unit ? Number(bytes.toPrecision(3)) : Math.round(bytes)} ${units[unit]}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 100) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const moment = (at) => (at ? new Date(at * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "–");
