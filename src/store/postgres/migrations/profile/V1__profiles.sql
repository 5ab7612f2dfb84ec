CREATE TABLE profile.profiles (
    user_id bigint PRIMARY KEY,
    name    text NOT NULL,
    company text NOT NULL,
    title   text NOT NULL
);

-- One row: the version of this schema, and the oldest version whose programs can work with it. Each later migration
-- sets both: without that, older programs refuse the schema.
CREATE TABLE profile.compatibility (version integer NOT NULL, oldest integer NOT NULL);
INSERT INTO profile.compatibility VALUES (1, 1);
