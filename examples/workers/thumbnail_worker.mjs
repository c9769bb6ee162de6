// A remote worker without any library: node thumbnail_worker.mjs http://127.0.0.1:8080
// It performs the action `thumbnail` of the queue `images`. docs/workers.md has the protocol.

const server = process.argv[2] ?? "http://127.0.0.1:8080";
const worker = `node-${process.pid}`;
const leaseSeconds = 30;
let stopping = false;
process.on("SIGTERM", () => { stopping = true; polling?.abort(); });
let polling;

async function post(verb, body, signal) {
  const answer = await fetch(`${server}/workers/${verb}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body }),
    signal,
  });
  if (answer.status === 409) return null; // the lease is over: drop the result
  if (!answer.ok) throw new Error(`${verb}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

async function perform(task) {
  const lease = { token: task.token, workflow_id: task.workflow_id, step: task.step };
  const beat = setInterval(() => post("heartbeat", { worker, tokens: [task.token] }).catch(() => {}), leaseSeconds * 333);
  try {
    const { image, width } = task.params;
    if (!(width > 0)) {
      await post("fail", { ...lease, message: "width must be more than 0", code: "THUMBNAIL-WIDTH", retryable: false });
    } else {
      await post("complete", { ...lease, output: { thumbnail: `${image}@${width}`, by: "node" } });
    }
  } catch (error) {
    await post("fail", { ...lease, message: String(error) }).catch(() => {}); // else the lease runs out
  } finally {
    clearInterval(beat);
  }
}

while (!stopping) {
  try {
    polling = new AbortController();
    const asked = { worker, queues: ["images"], actions: ["thumbnail"], max: 10, wait: "20s", lease: `${leaseSeconds}s` };
    const { tasks } = await post("poll", asked, polling.signal);
    await Promise.all(tasks.map(perform));
  } catch (error) {
    if (stopping) break;
    console.error(String(error));
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
await post("release", { worker }).catch(() => {});
