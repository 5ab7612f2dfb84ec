CREATE TABLE feed.feeds (
    user_id bigint NOT NULL,
    id      bigint NOT NULL,
    content text   NOT NULL,
    PRIMARY KEY (user_id, id)
);

-- One row: the version of this schema, and the oldest version whose programs can work with it. Each later migration
-- sets both: without that, older programs refuse the schema.
CREATE TABLE feed.compatibility (version integer NOT NULL, oldest integer NOT NULL);
INSERT INTO feed.compatibility VALUES (1, 1);
