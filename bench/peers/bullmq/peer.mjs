// BullMQ: BENCH_URL=redis://... node peer.mjs JOBS PROCESSES
//
// Jobs are added in bulk, 1,000 at once, and removed when they complete, as its documentation advises. Each worker
// process runs 100 jobs at once: of 50, 100 and 200 that was the fastest here, by a little.

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { Queue, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { drain, work } from '../fleet.mjs';

const BULK = 1000;
const CONCURRENCY = 100;
const PREFIX = 'windlass-bench-peer';
// A worker waits for jobs without end.
const connection = new Redis(process.env.BENCH_URL, { maxRetriesPerRequest: null });

if (process.argv[2] === 'worker') {
  await work(async (done) => {
    const worker = new Worker(process.argv[3], async () => {}, { connection, prefix: PREFIX, concurrency: CONCURRENCY });
    worker.on('completed', done);
    worker.on('error', (error) => console.error(error.message));
    await worker.waitUntilReady();
    return () => worker.close();
  });
} else {
  const [jobs, processes] = process.argv.slice(2).map(Number);
  const name = `bench-${process.pid}-${Date.now()}`;
  const queue = new Queue(name, { connection, prefix: PREFIX });
  await queue.waitUntilReady();
  const began = performance.now();
  for (let added = 0; added < jobs; added += BULK) {
    const count = Math.min(BULK, jobs - added);
    const opts = { removeOnComplete: true };
    await queue.addBulk(Array.from({ length: count }, () => ({ name: 'noop', data: {}, opts })));
  }
  const enqueue_tasks_per_s = jobs / ((performance.now() - began) / 1000);
  const drained = await drain(fileURLToPath(import.meta.url), processes, jobs, [name]);
  await queue.obliterate({ force: true });
  await queue.close();
  const { version } = createRequire(import.meta.url)('bullmq/package.json');
  console.log(JSON.stringify({ peer: 'bullmq', version, enqueue_tasks_per_s, ...drained }));
  process.exit(0);
}
