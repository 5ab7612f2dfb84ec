-- What a next version may do that programs of version 1 cannot work with.
ALTER TABLE feed.feeds ADD COLUMN stars bigint NOT NULL DEFAULT 0;
ALTER TABLE feed.feeds ALTER COLUMN stars DROP DEFAULT;
UPDATE feed.compatibility SET version = 2, oldest = 2;
