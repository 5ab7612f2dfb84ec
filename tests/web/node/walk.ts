// The README's walk with the client that openapi-typescript makes: `node walk.js URL`.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { argv: string[] };

function expect(what: string, found: unknown, wanted: unknown): void {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) {
    throw new Error(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
  }
}

const [url] = process.argv.slice(2);
if (url === undefined) throw new Error("no URL");
const gateway = createClient<paths>({ baseUrl: url });

const feeds: components["schemas"]["Feed"][] = [
  { id: 100, user_id: 123, content: "hello world" },
  { id: 101, user_id: 123, content: "goodbye!" },
];
for (const body of feeds) {
  const { data, response } = await gateway.PUT("/api/feed/create_feed", { body });
  expect("create_feed", [response.status, data], [200, {}]);
}
const page = await gateway.GET("/api/feed/get_feeds", { params: { query: { user_id: 123, size: 2 } } });
expect("get_feeds", page.data?.feeds, feeds);

const missing = await gateway.GET("/api/topic/view", { params: { query: { topic_id: 404404 } } });
const problem: components["schemas"]["Problem"] | undefined = missing.error;
expect("get_topic", [problem?.status, problem?.type], [404, "urn:microservice-app:problem:not_found"]);
console.log("walked");
