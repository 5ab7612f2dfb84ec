//! A file as the source and as the target of a copy.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Error, ErrorCode, OpenFlags, OptionalExtension, Row, params_from_iter};
use tonic::async_trait;

use super::super::bulk::{Export, Import, OnConflict, Put, Record, Service, Table, Written};
use super::super::error::StoreError;
use super::handle::Sqlite;
use super::open::BUSY;
use super::schema::{FEED, PROFILE, Schema, TOPIC};

/// Longest time until the write of a page begins.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// A file that is only read, in one transaction: what others write after the first read is not seen.
pub struct Snapshot {
    db: Arc<Mutex<Connection>>,
    sql: Arc<Statements>,
}

impl Snapshot {
    /// Opens a file of a service, and changes nothing in it.
    ///
    /// # Errors
    /// The text says what is wrong with the file.
    pub fn open(path: &Path, service: Service) -> Result<Self, String> {
        let (db, found) = connect(path)?;
        if found != service {
            return Err(format!("is a file of {}, not of {}", found.name(), service.name()));
        }
        // the snapshot is taken by the first read
        db.execute_batch("BEGIN").map_err(|e| e.to_string())?;
        let sql = Arc::new(Statements::of(service.table()));
        db.query_row(&sql.any, [], |_| Ok(())).optional().map_err(|e| e.to_string())?;
        Ok(Self { db: Arc::new(Mutex::new(db)), sql })
    }

    async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection, &Statements) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (db, sql) = (self.db.clone(), self.sql.clone());
        let read = tokio::task::spawn_blocking(move || {
            let db = db.lock().unwrap_or_else(PoisonError::into_inner);
            run(&db, &sql).map_err(|e| StoreError::from(&e))
        });
        read.await.map_err(|_| StoreError::Closed)?
    }
}

const fn schema_of(service: Service) -> &'static Schema {
    match service {
        Service::Feed => &FEED,
        Service::Profile => &PROFILE,
        Service::Topic => &TOPIC,
    }
}

/// Returns the service that a file belongs to.
///
/// # Errors
/// The text says what is wrong with the file.
pub fn service_of(path: &Path) -> Result<Service, String> {
    connect(path).map(|(_, service)| service)
}

/// Opens a file for reading.
fn connect(path: &Path) -> Result<(Connection, Service), String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    match path.metadata() {
        Err(error) => return Err(error.to_string()),
        Ok(found) if !found.is_file() => return Err("is not a regular file".to_owned()),
        Ok(_) => {}
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let open = || {
        let db = Connection::open_with_flags(&path, flags)?;
        db.busy_timeout(BUSY)?;
        let found = Service::ALL.into_iter().map(|service| Ok((service, schema_of(service).version(&db)?)));
        let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok((db, found))
    };
    let (db, found) = open().map_err(|e: rusqlite::Error| e.to_string())?;
    let own =
        found.iter().find_map(|(service, version)| version.as_ref().ok().map(|version| (*service, *version)));
    match own {
        Some((_, 0)) => Err("has no records: no service has used it".to_owned()),
        Some((service, _)) => Ok((db, service)),
        None => {
            // each service says why; that it is of another service is the least of the reasons
            let reasons = found.into_iter().filter_map(|(_, version)| version.err());
            let reason = reasons.max_by_key(|reason| reason.contains("version"));
            Err(reason.unwrap_or_default().replace("this service's file", "a file of this program"))
        }
    }
}

#[async_trait]
impl Export for Snapshot {
    async fn count(&self) -> Result<u64, StoreError> {
        self.read(|db, sql| sql.count(db)).await
    }

    async fn scan(&self, after: &[i64], limit: usize) -> Result<Vec<Record>, StoreError> {
        let mut values = after.to_vec();
        values.push(i64::try_from(limit).unwrap_or(i64::MAX));
        self.read(move |db, sql| {
            let mut query = db.prepare_cached(&sql.scan)?;
            let rows = query.query_map(params_from_iter(values), |row| sql.record(row))?;
            rows.collect()
        })
        .await
    }
}

/// A file that is written to beside its service.
pub struct Target {
    store: Sqlite,
    sql: Arc<Statements>,
}

impl Target {
    /// Opens or makes the file of a service and migrates it.
    ///
    /// # Errors
    /// The text says what is wrong with the file.
    pub fn open(path: &Path, service: Service) -> Result<Self, String> {
        let store = Sqlite::open(path, schema_of(service))?;
        Ok(Self { store, sql: Arc::new(Statements::of(service.table())) })
    }
}

#[async_trait]
impl Import for Target {
    async fn count(&self) -> Result<u64, StoreError> {
        let sql = self.sql.clone();
        self.store.read(move |db| sql.count(db)).await
    }

    async fn get_many(&self, keys: Vec<Vec<i64>>) -> Result<Vec<Record>, StoreError> {
        let sql = self.sql.clone();
        self.store.read(move |db| keys.iter().filter_map(|key| sql.get(db, key).transpose()).collect()).await
    }

    async fn put_many(&self, page: Vec<Record>, on_conflict: OnConflict) -> Result<Put, StoreError> {
        let sql = self.sql.clone();
        self.store.write(Instant::now() + WRITE_LIMIT, move |db| sql.put(db, &page, on_conflict)).await
    }
}

/// The statements of a table.
struct Statements {
    table: &'static Table,
    any: String,
    count: String,
    scan: String,
    get: String,
    put: String,
}

impl Statements {
    fn of(table: &'static Table) -> Self {
        let Table { name, key, texts } = table;
        let columns = table.columns().collect::<Vec<_>>();
        let marks = |count| vec!["?"; count].join(", ");
        let (all, keys) = (columns.join(", "), key.join(", "));
        let mut update = String::new();
        for text in *texts {
            let comma = if update.is_empty() { "" } else { ", " };
            let _ = write!(update, "{comma}{text} = excluded.{text}");
        }
        let (each, of_key) = (marks(columns.len()), marks(key.len()));
        Self {
            table,
            any: format!("SELECT 1 FROM {name} LIMIT 1"),
            count: format!("SELECT count(*) FROM {name}"),
            scan: format!("SELECT {all} FROM {name} WHERE ({keys}) > ({of_key}) ORDER BY {keys} LIMIT ?"),
            get: format!("SELECT {all} FROM {name} WHERE ({keys}) = ({of_key})"),
            put: format!(
                "INSERT INTO {name} ({all}) VALUES ({each}) ON CONFLICT ({keys}) DO UPDATE SET {update}"
            ),
        }
    }

    fn count(&self, db: &Connection) -> rusqlite::Result<u64> {
        let count: i64 = db.query_row(&self.count, [], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    fn record(&self, row: &Row<'_>) -> rusqlite::Result<Record> {
        let keys = self.table.key.len();
        let key: Vec<i64> = (0..keys).map(|column| row.get(column)).collect::<rusqlite::Result<_>>()?;
        let texts = (keys..keys + self.table.texts.len()).map(|column| row.get(column));
        match texts.collect::<rusqlite::Result<_>>() {
            Ok(texts) => Ok(Record { key, texts }),
            Err(error) => Err(self.name(&key, &error)),
        }
    }

    /// Returns an error that names its record.
    fn name(&self, key: &[i64], error: &Error) -> Error {
        // this kind prints nothing but what it holds
        Error::ToSqlConversionFailure(format!("{error}: {}", self.table.name_of(key)).into())
    }

    fn get(&self, db: &Connection, key: &[i64]) -> rusqlite::Result<Option<Record>> {
        let mut query = db.prepare_cached(&self.get)?;
        query.query_row(params_from_iter(key), |row| self.record(row)).optional()
    }

    /// Writes a page inside a transaction, all of it or nothing.
    fn put(&self, db: &Connection, page: &[Record], on_conflict: OnConflict) -> rusqlite::Result<Put> {
        db.execute_batch("SAVEPOINT page")?;
        let put = self.put_each(db, page, on_conflict);
        // SQLite ends the transaction by itself when the disk is full or fails
        if !db.is_autocommit() {
            let undo = if put.is_ok() { "" } else { "ROLLBACK TO page; " };
            db.execute_batch(&format!("{undo}RELEASE page"))?;
        }
        put
    }

    /// Looks at the whole page before it writes.
    fn put_each(&self, db: &Connection, page: &[Record], on_conflict: OnConflict) -> rusqlite::Result<Put> {
        let mut written = Written::default();
        let mut wanted = Vec::with_capacity(page.len());
        for record in page {
            match (self.get(db, &record.key)?, on_conflict) {
                (None, _) => {
                    written.copied += 1;
                    wanted.push(record);
                }
                (Some(there), _) if there == *record => written.same += 1,
                (Some(_), OnConflict::Stop) => return Ok(Put::Differs(record.key.clone())),
                (Some(_), OnConflict::Keep) => written.kept += 1,
                (Some(_), OnConflict::Overwrite) => {
                    written.overwritten += 1;
                    wanted.push(record);
                }
            }
        }
        let mut put = db.prepare_cached(&self.put)?;
        for record in wanted {
            for (at, value) in record.key.iter().enumerate() {
                put.raw_bind_parameter(at + 1, value)?;
            }
            for (at, text) in record.texts.iter().enumerate() {
                put.raw_bind_parameter(self.table.key.len() + at + 1, text)?;
            }
            put.raw_execute().map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig) => self.name(&record.key, &error),
                _ => error,
            })?;
        }
        Ok(Put::Written(written))
    }
}
