// Calls a feed server as any Node program does that uses @grpc/grpc-js; prints one line of JSON.
//
//   walk.js ADDR PROTOS

const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [addr, protos] = process.argv.slice(2);
const health = require.resolve("grpc-health-check").replace(/build.*/, "proto/health/v1/health.proto");
const load = (file) =>
  grpc.loadPackageDefinition(loader.loadSync(file, { keepCase: true, longs: String, enums: String, defaults: true }));
const plain = grpc.credentials.createInsecure();
const feed = new (load(path.join(protos, "feed.proto")).feed.Feed)(addr, plain);
const checks = new (load(health).grpc.health.v1.Health)(addr, plain);

// call makes a unary call; a failure is the name of its code
const call = (client, method, request) =>
  new Promise((resolve) =>
    client[method](request, { deadline: Date.now() + 5000 }, (error, answer) =>
      resolve(error ? grpc.status[error.code] : answer),
    ),
  );

async function main() {
  const watch = checks.Watch({ service: "topic.Topic" });
  const first = new Promise((resolve, reject) => watch.on("data", resolve).on("error", reject));
  const told = [
    (await call(checks, "Check", { service: "feed.Feed" })).status,
    await call(checks, "Check", { service: "topic.Topic" }),
    (await first).status,
  ];
  watch.on("error", () => {}).cancel();
  for (const [id, content] of [[1, "one"], [2, "two"]]) {
    await call(feed, "CreateFeed", { id, user_id: 7, content });
  }
  const page = await call(feed, "GetFeeds", { user_id: 7, size: 1 });
  const missing = await call(feed, "GetFeeds", { user_id: 8, size: 1 });
  console.log(JSON.stringify({ health: told, page, missing }));
  process.exit(0);
}
main();
