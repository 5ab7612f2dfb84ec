//! A database as the source and as the target of a copy. Each has a connection of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row, Statement};
use tonic::async_trait;

use super::super::bulk::{self as records, Export, Import, OnConflict, Put, Record, Table, Written};
use super::super::error::StoreError;
use super::dial::Target as Place;
use super::failure::{Failure, reason};
use super::keeper::SLACK;
use super::link::Link;
use super::schema::{Found, Unusable};
use super::service::{FEED, PROFILE, Service, TOPIC};
use super::sql::{self, DURABLE, Existing};
use crate::config::{PostgresUrl, Store};

/// Longest time of one statement and of one commit, also of one that counts all records.
const LIMIT: Duration = Duration::from_mins(10);

/// How often a connection is tried.
const TRIES: u32 = 3;
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How often migrations are tried that want a table that others use, and the time between two tries: calls of the services
/// wait behind each.
const MIGRATION_TRIES: u32 = 5;
const MIGRATION_PAUSE: Duration = Duration::from_secs(2);

/// A connection and its statements.
struct Session {
    link: Link,
    table: &'static Table,
    count: Statement,
    scan: Statement,
    get: Statement,
    insert: Statement,
    replace: Statement,
}

/// A database that is only read, in one transaction: what others write after its first read is not seen.
pub struct Snapshot(Session);

/// A database that is written to beside its service.
pub struct Target(Session);

fn service_of(service: records::Service) -> &'static Service {
    match service {
        records::Service::Feed => &FEED,
        records::Service::Profile => &PROFILE,
        records::Service::Topic => &TOPIC,
    }
}

async fn connect(url: &PostgresUrl, settings: &Store) -> Result<Link, String> {
    let place = Place::new(url.config(), settings)?;
    let mut tries = 1;
    // each try has a second, which a busy server or a failover may need for itself
    let link = loop {
        match place.connect(0).await {
            Ok((link, _)) => break link,
            Err(why) if tries == TRIES => return Err(why),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(PAUSE).await;
    };
    let limit = LIMIT.as_millis();
    // a page of keys is looked up by the index, whatever the statistics of a table that has just been filled say
    let session = format!(
        "{DURABLE}; SET statement_timeout = {limit}; SET lock_timeout = {limit}; \
         SET idle_in_transaction_session_timeout = 0; SET enable_hashjoin = off; SET enable_mergejoin = off"
    );
    answered(settings, link.client().batch_execute(&session)).await?;
    Ok(link)
}

/// Waits for what the server does before the copy begins, for as long as a service would.
///
/// # Errors
/// What the server said, or that it said nothing.
async fn answered<T, E: Into<Unusable>>(
    settings: &Store,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    let limit = settings.timeout + SLACK;
    let ended = tokio::time::timeout(limit, work).await;
    match ended.map_err(|_| format!("no answer within {limit:?}"))?.map_err(Into::into) {
        Ok(done) => Ok(done),
        Err(unusable) => Err(unusable.reason().to_owned()),
    }
}

/// Returns the services whose tables a database has, of those that the user may read.
///
/// # Errors
/// Why it cannot be read.
pub async fn services(url: &PostgresUrl, settings: &Store) -> Result<Vec<records::Service>, String> {
    let link = connect(url, settings).await?;
    let question = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                    WHERE c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE')";
    let tables = answered(settings, link.client().query(question, &[])).await?;
    let names = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let tables: Vec<(String, String)> =
        tables.iter().map(names).collect::<Result<_, _>>().map_err(|error: Error| reason(&error))?;
    let there = |service: &records::Service| {
        tables.iter().any(|(schema, table)| {
            (schema.as_str(), table.as_str()) == (service.name(), service.table().name)
        })
    };
    Ok(records::Service::ALL.into_iter().filter(there).collect())
}

impl Snapshot {
    /// Connects to the records of a service, and changes nothing.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn open(
        url: &PostgresUrl,
        settings: &Store,
        service: records::Service,
    ) -> Result<Self, String> {
        let link = connect(url, settings).await?;
        match answered(settings, service_of(service).schema.find(link.client())).await? {
            Found::Version(1..) => {}
            Found::Version(_) | Found::Nothing => {
                return Err(format!("has no records of {}", service.name()));
            }
        }
        let session = answered(settings, Session::new(link, service)).await?;
        // the snapshot is taken by the first read
        let begin = session.link.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
        answered(settings, begin).await?;
        Ok(Self(session))
    }
}

impl Target {
    /// Connects to the records of a service; makes and migrates its schema.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn open(
        url: &PostgresUrl,
        settings: &Store,
        service: records::Service,
    ) -> Result<Self, String> {
        let schema = &service_of(service).schema;
        let mut tries = 1;
        loop {
            // a connection for each try: migrations change the limits of their session, and one that fails has locks
            let mut link = connect(url, settings).await?;
            match schema.ensure(link.client_mut(), settings.timeout, tries > 1).await {
                Ok(_) => break,
                Err(Unusable::InUse(_)) if tries < MIGRATION_TRIES => tries += 1,
                Err(unusable) => return Err(unusable.reason().to_owned()),
            }
            drop(link);
            tokio::time::sleep(MIGRATION_PAUSE).await;
        }
        let link = connect(url, settings).await?;
        answered(settings, Session::new(link, service)).await.map(Self)
    }
}

impl Session {
    async fn new(link: Link, service: records::Service) -> Result<Self, Unusable> {
        let (table, schema) = (service.table(), &service_of(service).schema);
        let texts = Texts::of(service.name(), table);
        let prepare = |text| schema.prepare(link.client(), text);
        let (count, scan, get) =
            (prepare(&texts.count).await?, prepare(&texts.scan).await?, prepare(&texts.get).await?);
        let (insert, replace) = (prepare(&texts.insert).await?, prepare(&texts.replace).await?);
        Ok(Self { link, table, count, scan, get, insert, replace })
    }

    /// Waits for what the server does.
    async fn within<T>(&self, work: impl Future<Output = Result<T, Error>> + Send) -> Result<T, Failure> {
        let error = match tokio::time::timeout(LIMIT + SLACK, work).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => return Err(Failure::Refused(format!("no answer within {LIMIT:?}"))),
        };
        let failure = Failure::of(&error);
        if !failure.ends_connection() {
            return Err(failure);
        }
        // the connection knows more: that a commit was not replicated, for example
        let why = tokio::time::timeout(SLACK, self.link.lost()).await.unwrap_or_else(|_| reason(&error));
        Err(Failure::Refused(format!("the connection was lost: {why}")))
    }

    async fn count(&self) -> Result<u64, StoreError> {
        let row = self.within(self.link.client().query_one(&self.count, &[])).await?;
        let count: i64 = row.try_get(0).map_err(|error| StoreError::from(Failure::of(&error)))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    fn record(&self, row: &Row) -> Result<Record, Error> {
        let keys = self.table.key.len();
        let key = (0..keys).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
        let texts = (keys..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
        Ok(Record { key, texts })
    }

    fn records(&self, rows: &[Row]) -> Result<Vec<Record>, Failure> {
        let records = rows.iter().map(|row| self.record(row)).collect::<Result<_, _>>();
        records.map_err(|error| Failure::of(&error))
    }

    async fn get_many(&self, keys: &[Vec<i64>]) -> Result<Vec<Record>, Failure> {
        let columns = columns(&keys.iter().map(Vec::as_slice), self.table.key.len());
        let rows = self.within(self.link.client().query(&self.get, &parameters(&columns))).await?;
        self.records(&rows)
    }

    /// Writes records by one of the two statements; returns how many it has written.
    async fn write(&self, statement: &Statement, records: &[&Record]) -> Result<u64, Failure> {
        let keys = columns(&records.iter().map(|record| record.key.as_slice()), self.table.key.len());
        let texts = columns(&records.iter().map(|record| record.texts.as_slice()), self.table.texts.len());
        let values = [parameters(&keys), parameters(&texts)].concat();
        // the rows themselves: a cluster may count them wrongly
        let rows = self.within(self.link.client().query(statement, &values)).await?;
        Ok(rows.len() as u64)
    }

    async fn command(&self, command: &str) -> Result<(), Failure> {
        self.within(self.link.client().batch_execute(command)).await
    }
}

/// Returns the columns of some rows.
fn columns<'a, T>(rows: &(impl Iterator<Item = &'a [T]> + Clone), count: usize) -> Vec<Vec<&'a T>> {
    let column = |at: usize| rows.clone().filter_map(|row| row.get(at)).collect();
    (0..count).map(column).collect()
}

/// Returns columns as the parameters of a statement, an array each.
fn parameters<T: ToSql + Sync>(columns: &[Vec<T>]) -> Vec<&(dyn ToSql + Sync)> {
    columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect()
}

#[async_trait]
impl Export for Snapshot {
    async fn count(&self) -> Result<u64, StoreError> {
        self.0.count().await
    }

    async fn scan(&self, after: &[i64], limit: usize) -> Result<Vec<Record>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut values: Vec<&(dyn ToSql + Sync)> =
            after.iter().map(|key| key as &(dyn ToSql + Sync)).collect();
        values.push(&limit);
        let rows = self.0.within(self.0.link.client().query(&self.0.scan, &values)).await?;
        Ok(self.0.records(&rows)?)
    }
}

#[async_trait]
impl Import for Target {
    async fn count(&self) -> Result<u64, StoreError> {
        self.0.count().await
    }

    async fn get_many(&self, keys: Vec<Vec<i64>>) -> Result<Vec<Record>, StoreError> {
        Ok(self.0.get_many(&keys).await?)
    }

    async fn put_many(&self, page: Vec<Record>, on_conflict: OnConflict) -> Result<Put, StoreError> {
        let session = &self.0;
        session.command("BEGIN").await?;
        let put = self.put(&page, on_conflict).await;
        let end = if matches!(put, Ok(Put::Written(_))) { "COMMIT" } else { "ROLLBACK" };
        match put {
            Err(Failure::Row(why) | Failure::Forbidden(why)) => {
                session.command(end).await?;
                let refused = self.refused(&page).await?;
                let key = refused.map_or_else(String::new, |record| session.table.name_of(&record.key));
                Err(StoreError::Failed(format!("{why}: {key}")))
            }
            // the copy ends, and with it the connection
            Err(failure) => Err(failure.into()),
            Ok(put) => {
                session.command(end).await?;
                Ok(put)
            }
        }
    }
}

impl Target {
    /// Writes a page inside a transaction.
    async fn put(&self, page: &[Record], on_conflict: OnConflict) -> Result<Put, Failure> {
        let session = &self.0;
        let all: Vec<_> = page.iter().collect();
        let copied = session.write(&session.insert, &all).await?;
        let mut written = Written { copied, ..Written::default() };
        if copied < page.len() as u64 {
            let differing = self.differing(page).await?;
            let count = differing.len() as u64;
            written.same = (page.len() as u64).saturating_sub(copied + count);
            match (on_conflict, differing.first()) {
                (OnConflict::Stop, Some(first)) => return Ok(Put::Differs(first.key.clone())),
                (OnConflict::Overwrite, Some(_)) => {
                    session.write(&session.replace, &differing).await?;
                    written.overwritten = count;
                }
                (OnConflict::Keep, Some(_)) => written.kept = count,
                (_, None) => {}
            }
        }
        Ok(Put::Written(written))
    }

    /// Returns a record of a page that the database does not accept: tries halves of the page, and writes nothing.
    async fn refused<'a>(&self, page: &'a [Record]) -> Result<Option<&'a Record>, Failure> {
        let session = &self.0;
        let mut page = page;
        while page.len() > 1 {
            let (first, second) = page.split_at(page.len() / 2);
            session.command("BEGIN").await?;
            let tried = session.write(&session.replace, &first.iter().collect::<Vec<_>>()).await;
            session.command("ROLLBACK").await?;
            page = match tried {
                Ok(_) => second,
                Err(Failure::Row(_) | Failure::Forbidden(_)) => first,
                Err(failure) => return Err(failure),
            };
        }
        Ok(page.first())
    }

    /// Returns the records of a page that are there with other texts. Those that have just been written are as in the page.
    async fn differing<'a>(&self, page: &'a [Record]) -> Result<Vec<&'a Record>, Failure> {
        let keys: Vec<_> = page.iter().map(|record| record.key.clone()).collect();
        let there = self.0.get_many(&keys).await?;
        let there: BTreeMap<_, _> = there.into_iter().map(|record| (record.key, record.texts)).collect();
        let differs = |record: &&Record| there.get(&record.key).is_some_and(|texts| *texts != record.texts);
        Ok(page.iter().filter(differs).collect())
    }
}

/// The statements of a table, as texts.
struct Texts {
    count: String,
    scan: String,
    get: String,
    insert: String,
    replace: String,
}

impl Texts {
    fn of(schema: &str, table: &Table) -> Self {
        let name = format!("{schema}.{}", table.name);
        let (all, keys) = (table.columns().collect::<Vec<_>>().join(", "), table.key.join(", "));
        let marks = (1..=table.key.len()).map(|at| format!("${at}")).collect::<Vec<_>>().join(", ");
        let limit = table.key.len() + 1;
        let arrays = sql::parameters(table, "[]");
        let rows = format!("SELECT {all} FROM unnest({}) AS page ({all})", arrays.join(", "));
        let put = |existing| sql::insert(schema, table, &rows, existing);
        Self {
            count: format!("SELECT count(*) FROM {name}"),
            scan: format!(
                "SELECT {all} FROM {name} WHERE ({keys}) > ({marks}) ORDER BY {keys} LIMIT ${limit}"
            ),
            get: format!(
                "SELECT {all} FROM {name} JOIN unnest({}) AS page ({keys}) USING ({keys})",
                arrays[..table.key.len()].join(", ")
            ),
            insert: put(Existing::Keep),
            replace: put(Existing::Replace),
        }
    }
}
