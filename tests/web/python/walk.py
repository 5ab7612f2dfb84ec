"""The README's walk with the client that openapi-python-client makes: `walk.py URL`, with `client` on the path."""

import sys

from client import Client
from client.api.feed import create_feed, get_feeds
from client.api.topic import get_topic
from client.models import CreateFeedBody, Done, Feeds, Problem

gateway = Client(base_url=sys.argv[1])
contents = {100: "hello world", 101: "goodbye!"}
for feed_id, content in contents.items():
    body = CreateFeedBody(id=feed_id, user_id=123, content=content)
    created = create_feed.sync_detailed(client=gateway, body=body)
    assert created.status_code == 200 and isinstance(created.parsed, Done), created
feeds = get_feeds.sync(client=gateway, user_id=123, size=2)
assert isinstance(feeds, Feeds), feeds
assert {feed.id: feed.content for feed in feeds.feeds} == contents, feeds
assert all(feed.user_id == 123 for feed in feeds.feeds), feeds

missing = get_topic.sync(client=gateway, topic_id=404404)
assert isinstance(missing, Problem), missing
assert (missing.status, missing.type_) == (404, "urn:microservice-app:problem:not_found"), missing
print("walked")
