// Graphile Worker: BENCH_URL=postgres://... node peer.mjs JOBS PROCESSES
//
// In a schema of its own, that is dropped. Jobs are added 1,000 at once. Workers fetch 500 jobs at once into their local
// queue and complete them in batches: the settings that its documentation names for the highest throughput.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { makeWorkerUtils, run } from 'graphile-worker';
import { drain, work } from '../fleet.mjs';

const BULK = 1000;

function preset(schema) {
  return {
    worker: {
      connectionString: process.env.BENCH_URL,
      schema,
      concurrentJobs: 24,
      maxPoolSize: 25,
      pollInterval: 2000,
      preparedStatements: true,
      localQueue: { size: 500 },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  };
}

const { Logger } = createRequire(import.meta.url)('graphile-worker');
const logger = new Logger(() => (level, message) => level === 'error' && console.error(message));

if (process.argv[2] === 'worker') {
  await work(async (done) => {
    const taskList = { noop: async () => {} };
    const runner = await run({ preset: preset(process.argv[3]), taskList, logger, noHandleSignals: true });
    runner.events.on('job:complete', done);
    return () => runner.stop();
  });
} else {
  const [jobs, processes] = process.argv.slice(2).map(Number);
  const schema = `windlass_bench_peer_${process.pid}`;
  const utils = await makeWorkerUtils({ preset: preset(schema), logger });
  await utils.migrate();
  const began = performance.now();
  for (let added = 0; added < jobs; added += BULK) {
    const count = Math.min(BULK, jobs - added);
    await utils.addJobs(Array.from({ length: count }, () => ({ identifier: 'noop', payload: {} })));
  }
  const enqueue_tasks_per_s = jobs / ((performance.now() - began) / 1000);
  const drained = await drain(fileURLToPath(import.meta.url), processes, jobs, [schema]);
  await utils.withPgClient((client) => client.query(`drop schema ${schema} cascade`));
  await utils.release();
  const manifest = new URL('node_modules/graphile-worker/package.json', import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, 'utf8'));
  console.log(JSON.stringify({ peer: 'graphile-worker', version, enqueue_tasks_per_s, ...drained }));
  process.exit(0);
}
