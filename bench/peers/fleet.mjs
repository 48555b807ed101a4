// Worker processes of a Node.js peer: started again as `PROGRAM worker ...`, counted over the channel between processes.
//
// A worker says `ready` when it has connected, begins after `go`, says every 5 ms how many jobs it has done, and answers
// `stop` with its CPU time since `go`.

import { fork } from 'node:child_process';

const COUNT_EVERY_MS = 5;

/// The side of the worker: `begin` starts the work, given a function to call for each job that is done; it answers a
/// function that stops it.
export async function work(begin) {
  let done = 0;
  let cpu;
  let stop;
  process.send({ ready: true });
  for await (const order of orders()) {
    if (order === 'go') {
      cpu = process.cpuUsage();
      stop = await begin(() => done++);
      let said = -1;
      setInterval(() => {
        if (done !== said) process.send({ done: (said = done), at: Date.now() });
      }, COUNT_EVERY_MS).unref();
    } else {
      const { user, system } = process.cpuUsage(cpu);
      await stop();
      process.send({ cpu_s: (user + system) / 1e6 }, () => process.exit(0));
    }
  }
}

async function* orders() {
  const waiting = [];
  let wake = () => {};
  process.on('message', (order) => {
    waiting.push(order);
    wake();
  });
  // Whoever started it is gone.
  process.on('disconnect', () => process.exit(1));
  for (;;) {
    while (waiting.length > 0) yield waiting.shift();
    await new Promise((resolve) => (wake = resolve));
  }
}

/// The side of the one that measures: lets so many processes drain so many jobs.
export async function drain(program, processes, jobs, args) {
  const workers = Array.from({ length: processes }, () => fork(program, ['worker', ...args]));
  for (const worker of workers) {
    worker.once('exit', (code) => {
      if (code !== 0) {
        console.error(`a worker has ended early with ${code}`);
        process.exit(1);
      }
    });
  }
  await Promise.all(workers.map((worker) => heard(worker, (word) => word.ready)));
  const counts = workers.map(() => 0);
  const began = Date.now();
  const ended = new Promise((resolve) => {
    workers.forEach((worker, index) =>
      worker.on('message', (word) => {
        if (word.done === undefined) return;
        counts[index] = word.done;
        if (counts.reduce((sum, count) => sum + count, 0) >= jobs) resolve(word.at);
      }),
    );
  });
  workers.forEach((worker) => worker.send('go'));
  const seconds = ((await ended) - began) / 1000;
  const stopped = workers.map((worker) => heard(worker, (word) => word.cpu_s !== undefined));
  workers.forEach((worker) => worker.send('stop'));
  const cpu_s = (await Promise.all(stopped)).reduce((sum, word) => sum + word.cpu_s, 0);
  return { drain_tasks_per_s: jobs / seconds, cpu_s };
}

function heard(worker, what) {
  return new Promise((resolve) => {
    const listen = (word) => {
      if (!what(word)) return;
      worker.off('message', listen);
      resolve(word);
    };
    worker.on('message', listen);
  });
}
