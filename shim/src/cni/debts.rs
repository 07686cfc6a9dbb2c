//! What could not be given back, as a rule to a CNI plugin, tried again until it can: beside whatever a client asks for, and also
//! when nobody asks.
//!
//! ```text
//!  a sandbox whose teardown failed    its client's next Stop, or this: Stop of the pod, or the rest of its undoing
//!  one that the last daemon has left  the same: no start waits for a plugin
//!  an entry that no pod claims        DEL with what is on file (a reboot, a state directory that was lost)
//! ```

use std::{
    collections::HashSet,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crisp_netns::namespaces::{self, Pins};

use crate::{
    error::{RequestError, Stage},
    id::Id,
    node::{Node, blocking},
    pod::{SandboxOp, teardown},
    record::{SandboxPhase, SandboxRecord},
};

/// Pause after a failed attempt; each later one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(300);

/// The ids of those that something is being done about.
#[derive(Debug, Default)]
pub(super) struct Debts(Mutex<HashSet<String>>);

/// What has to be given back.
#[derive(Debug)]
pub(crate) enum Debt {
    /// All that a sandbox holds.
    Sandbox(Box<SandboxRecord>),
    /// What an entry of the ledger says, of this container id and interface.
    Entry(String, String),
}

impl Debt {
    fn id(&self) -> &str {
        match self {
            Self::Sandbox(record) => record.id.as_str(),
            Self::Entry(id, _) => id,
        }
    }
}

/// Has `debt`, of which an attempt has just failed, settled in the background, unless that is being done already. To be
/// called in a tokio runtime.
pub(crate) fn owe(node: &Arc<Node>, debt: Debt) {
    begin(node, debt, FIRST);
}

/// The same of a debt that nobody has tried to settle in this life of the daemon.
pub(crate) fn owe_from_before(node: &Arc<Node>, debt: Debt) {
    begin(node, debt, Duration::ZERO);
}

fn begin(node: &Arc<Node>, debt: Debt, pause: Duration) {
    let mut debts = node.cni.debts.0.lock().unwrap_or_else(PoisonError::into_inner);
    if debts.insert(debt.id().to_owned()) {
        tokio::spawn(settle(node.clone(), debt, pause));
    }
}

/// Finds the entries that no pod claims. `kept`: sandboxes whose records cannot be read; what they hold is theirs. To be
/// called when all pods are known, in a tokio runtime; blocks.
///
/// # Errors
/// The ledger cannot be listed.
pub(crate) fn unclaimed(node: &Arc<Node>, kept: &HashSet<String>) -> Result<(), RequestError> {
    let pods: HashSet<Id> = node.pods().iter().map(|pod| pod.id.clone()).collect();
    for (id, ifname) in node.cni.cni.ledger().keys().stage("network")? {
        if !pods.contains(id.as_str()) && !kept.contains(&id) {
            tracing::warn!(id, "a CNI network holds something that no pod claims; giving it back");
            owe_from_before(node, Debt::Entry(id, ifname));
        }
    }
    Ok(())
}

/// The ids of all entries: a namespace that one names is needed until its DEL has succeeded.
///
/// # Errors
/// The ledger cannot be listed.
pub(crate) fn ids(node: &Node) -> Result<HashSet<String>, RequestError> {
    Ok(node.cni.cni.ledger().keys().stage("network")?.into_iter().map(|(id, _)| id).collect())
}

/// Of a type without a name of its own, because settling ends in what made the debt.
fn settle(node: Arc<Node>, debt: Debt, mut pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        loop {
            tokio::time::sleep(pause).await;
            match attempt(&node, &debt).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(pod = debt.id(), %error, "not given back yet; it is tried again")
                }
            }
            pause = (pause * 2).clamp(FIRST, LONGEST);
        }
        tracing::info!(pod = debt.id(), "given back what was still held");
        node.cni.debts.0.lock().unwrap_or_else(PoisonError::into_inner).remove(debt.id());
    })
}

async fn attempt(node: &Arc<Node>, debt: &Debt) -> Result<(), RequestError> {
    match debt {
        Debt::Sandbox(record) => {
            let pod = node.pods().into_iter().find(|pod| pod.id == record.id);
            match pod {
                Some(pod) => {
                    // Nobody was ever given the id of one that could not be made: it is not listed for longer than this.
                    let unmade = pod.sandbox().phase == SandboxPhase::Undoing;
                    let gone = || Err(RequestError::unknown("the pod has gone meanwhile"));
                    pod.ask(SandboxOp::Stop).await.unwrap_or_else(gone)?;
                    if unmade { pod.ask(SandboxOp::Remove).await.unwrap_or(Ok(())) } else { Ok(()) }
                }
                // A client's Stop has succeeded meanwhile, and its Remove, too.
                None if !node.state.pod(&record.id).path().exists() => Ok(()),
                None => {
                    teardown::sandbox(node, record, None).await?;
                    teardown::forget(node, record).await
                }
            }
        }
        Debt::Entry(id, ifname) => {
            let (node, id, ifname) = (node.clone(), id.clone(), ifname.clone());
            blocking(move || give_back(&node, &id, &ifname)).await
        }
    }
}

/// DEL of an entry, and the pin of its namespace, if that is one of this daemon's.
fn give_back(node: &Node, id: &str, ifname: &str) -> Result<(), RequestError> {
    let pin = Path::new(&node.config.network.pin_dir).join(node.pin_name(id));
    let there = namespaces::open_pin(&pin).is_ok();
    node.cni.cni.detach(id, ifname, there).stage("network")?;
    namespaces::unpin(&Pins { net: Some(pin), ..Pins::default() }).stage("namespace pin")
}
