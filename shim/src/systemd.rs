//! systemd, as far as the cgroup driver of that name needs it: scopes around processes, their properties, their end.
//!
//! A client of its own and not zbus: systemd's private socket names a well-known name as the sender of what it says,
//! which zbus refuses to read, and the four calls that are needed cost a tenth of its size.
//!
//! Must not know: pods, containers, what limits mean.

mod bus;
mod message;
pub mod unit;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::Mutex, time::timeout};

pub use bus::BusError;
use bus::{Bus, Method};
use message::Writer;

/// Where systemd listens.
pub const SOCKET: &str = "/run/systemd/private";
/// How long a job may take. systemd has been seen to need half a minute on nodes with many scopes.
const JOB_PATIENCE: Duration = Duration::from_secs(90);

/// The value of a unit's property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `t`; `u64::MAX` means infinity wherever that is possible.
    Number(u64),
    /// `s`
    Text(String),
    /// `au`: process ids.
    Pids(Vec<u32>),
    /// `ay`: a bit for each CPU or memory node.
    Bits(Vec<u8>),
}

impl Value {
    fn write(&self, into: &mut Writer) {
        let signature = match self {
            Self::Bool(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Pids(_) => "au",
            Self::Bits(_) => "ay",
        };
        into.signature(signature);
        match self {
            Self::Bool(value) => into.bool(*value),
            Self::Number(value) => into.u64(*value),
            Self::Text(text) => into.text(text),
            Self::Pids(pids) => into.array(4, |array| pids.iter().for_each(|pid| array.u32(*pid))),
            Self::Bits(bytes) => into.array(1, |array| bytes.iter().for_each(|byte| array.byte(*byte))),
        }
    }
}

/// A unit's property.
pub type Property = (&'static str, Value);

/// Why systemd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// A call.
    #[error("{call} {unit}: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        source: BusError,
    },
    /// The job that a call has made did not succeed.
    #[error("{call} {unit}: the job ended with {result:?}")]
    Job {
        /// The call's name.
        call: &'static str,
        /// The unit.
        unit: String,
        /// systemd's word for it: failed, timeout, dependency, canceled.
        result: String,
    },
}

const fn method(member: &'static str, signature: &'static str) -> Method {
    Method {
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
        signature,
    }
}

const START_TRANSIENT: Method = method("StartTransientUnit", "ssa(sv)a(sa(sv))");
const SET_PROPERTIES: Method = method("SetUnitProperties", "sba(sv)");
const STOP: Method = method("StopUnit", "ss");

/// See the module. Connects when it is first asked for something.
#[derive(Debug)]
pub struct Systemd {
    socket: PathBuf,
    bus: Mutex<Option<Bus>>,
}

impl Systemd {
    /// The systemd that listens at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), bus: Mutex::new(None) }
    }

    /// Makes a scope around processes, and waits until they are in it.
    ///
    /// # Errors
    /// systemd refuses, or does not answer.
    pub async fn start_scope(&self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(unit);
        body.text("replace");
        write_properties(&mut body, properties);
        body.array(8, |_no_others| {});
        self.job(START_TRANSIENT, unit, &body).await
    }

    /// Changes properties of a unit until it ends.
    ///
    /// # Errors
    /// As [`Self::start_scope`].
    pub async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(unit);
        body.bool(true);
        write_properties(&mut body, properties);
        self.call(SET_PROPERTIES, unit, &body).await
    }

    /// Stops a unit, which kills what is in it, and waits until it is done. One that systemd does not know has stopped.
    ///
    /// # Errors
    /// As [`Self::start_scope`].
    pub async fn stop(&self, unit: &str) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(unit);
        body.text("replace");
        match self.job(STOP, unit, &body).await {
            Err(error) if error.is("NoSuchUnit") => Ok(()),
            done => done,
        }
    }

    /// An open connection.
    async fn bus(&self) -> Result<Bus, BusError> {
        let mut held = self.bus.lock().await;
        match &*held {
            Some(bus) if bus.is_open() => Ok(bus.clone()),
            _ => Ok(held.insert(Bus::connect(&self.socket).await?).clone()),
        }
    }

    async fn call(&self, method: Method, unit: &str, body: &Writer) -> Result<(), SystemdError> {
        let failed = |source| SystemdError::Call { call: method.member, unit: unit.to_owned(), source };
        match self.bus().await.map_err(failed)?.call(method, body).await {
            // systemd re-executes itself on upgrades, and closes every connection then.
            Err(BusError::Closed) => {
                self.bus().await.map_err(failed)?.call(method, body).await.map_err(failed)
            }
            answer => answer.map_err(failed),
        }
    }

    /// A call that makes a job, and the job's end.
    async fn job(&self, method: Method, unit: &str, body: &Writer) -> Result<(), SystemdError> {
        match self.try_job(method, unit, body).await {
            Err(error) if error.is_closed() => self.try_job(method, unit, body).await,
            done => done,
        }
    }

    async fn try_job(&self, method: Method, unit: &str, body: &Writer) -> Result<(), SystemdError> {
        let call = method.member;
        let failed = |source| SystemdError::Call { call, unit: unit.to_owned(), source };
        let bus = self.bus().await.map_err(failed)?;
        let end = bus.job_end(unit);
        let called = bus.call(method, body).await;
        let ended = match called {
            Ok(()) => timeout(JOB_PATIENCE, end).await,
            Err(error) => {
                bus.forget_job(unit);
                return Err(failed(error));
            }
        };
        bus.forget_job(unit);
        let result = ended
            .map_err(|_| failed(BusError::Silent(JOB_PATIENCE)))?
            .map_err(|_| failed(BusError::Closed))?;
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(SystemdError::Job { call, unit: unit.to_owned(), result }),
        }
    }
}

impl SystemdError {
    /// Whether systemd refused with the error of this name.
    #[must_use]
    pub fn is(&self, wanted: &str) -> bool {
        let Self::Call { source: BusError::Refused { name, .. }, .. } = self else { return false };
        name.rsplit('.').next() == Some(wanted)
    }

    fn is_closed(&self) -> bool {
        matches!(self, Self::Call { source: BusError::Closed, .. })
    }
}

fn write_properties(body: &mut Writer, properties: &[Property]) {
    body.array(8, |array| {
        for (name, value) in properties {
            array.structure(|property| {
                property.text(name);
                value.write(property);
            });
        }
    });
}
