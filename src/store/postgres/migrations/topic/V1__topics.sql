CREATE TABLE topic.topics (
    topic_id bigint PRIMARY KEY,
    subject  text NOT NULL,
    content  text NOT NULL
);

-- One row: the version of this schema, and the oldest version whose programs can work with it. Each later migration
-- sets both: without that, older programs refuse the schema.
CREATE TABLE topic.compatibility (version integer NOT NULL, oldest integer NOT NULL);
INSERT INTO topic.compatibility VALUES (1, 1);
