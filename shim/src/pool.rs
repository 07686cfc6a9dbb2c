//! Network, IPC and UTS namespaces that are ready before a pod asks for them, each with a veth pair and addresses: what
//! takes the kernel longest when a pod is made.
//!
//! ```text
//!  fill, off the hot path     id ─ lease ─ unshare, lo up, the network's sysctls ─ veth, addresses, routes ─┐
//!                                                                                        ready (descriptors only)
//!  take, for a new pod        the id becomes the pod's ◄───────────────────────────────────────────────────┘
//! ```
//!
//! An entry is made under the id of the pod that it is for, whoever that will be: the link has the pod's name and mark
//! from the start, and the record that the pod writes before anything else says what an entry holds. An entry that no pod
//! has taken lives by the daemon's descriptors and ends with it; what the kernel has not taken away by the next start is
//! swept there, because no record claims it, and only then are addresses given out again.
//!
//! A new namespace begins with copies of some of the host's settings. An entry remembers them as they were; one that is
//! older than a change is not used. (The kernel copies from its first network namespace, where a daemon on a node is.)
//!
//! Must not know: how a pod is built.

use std::{
    collections::VecDeque,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use crisp_netns::{
    namespaces::{self, Created},
    network::AttachRequest,
    sysctl::{Inherited, Sysctl},
};

use crate::{
    convert::sandbox::SandboxPlan,
    error::{RequestError, Stage},
    id::Id,
    node::{Node, blocking},
    record::NetworkRecord,
};

/// Namespaces for one pod.
#[derive(Debug)]
pub struct Ready {
    /// The id that the pod will have.
    pub id: Id,
    /// The link and the addresses, as the pod's record will say.
    pub network: NetworkRecord,
    /// The namespaces.
    pub created: Created,
    /// The host's settings before they were made.
    inherited: Vec<u8>,
    /// Of the pool, when their making began.
    generation: u64,
}

/// All that is ready.
#[derive(Debug)]
pub struct Pool {
    size: usize,
    /// `None` when nothing is ever kept ready.
    inherited: Option<Inherited>,
    state: Mutex<State>,
    /// Told when the filling ends.
    filled: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Ready>,
    /// See [`Pool::discard`]. They wait for their end.
    unwanted: Vec<Ready>,
    /// Counts the times that entries were discarded.
    generation: u64,
    filling: bool,
    closed: bool,
}

impl Pool {
    /// An empty pool for `size` entries.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let inherited = match size {
            0 => None,
            _ => Inherited::open()
                .inspect_err(|error| tracing::warn!(%error, "the host's settings cannot be read; no namespaces are kept ready"))
                .ok(),
        };
        Self { size, inherited, state: Mutex::default(), filled: Condvar::new() }
    }

    /// An entry for a pod of this plan; `None` when there is none, or the plan asks for something else.
    #[must_use]
    pub fn take(&self, plan: &SandboxPlan) -> Option<Ready> {
        if !fits(plan) {
            return None;
        }
        self.lock().ready.pop_front()
    }

    /// No entry that was begun before this call is given out after it: pods are to have addresses of another range.
    pub fn discard(&self) {
        let mut state = self.lock();
        state.generation += 1;
        let State { ready, unwanted, .. } = &mut *state;
        unwanted.extend(ready.drain(..));
    }

    /// Takes an entry back that nothing was done with.
    pub fn give_back(&self, ready: Ready) {
        self.lock().ready.push_front(ready);
    }

    /// Whether the host's settings are still those that the entry's namespaces have begun with.
    #[must_use]
    pub fn is_current(&self, ready: &Ready) -> bool {
        self.inherited.as_ref().is_some_and(|inherited| inherited.values() == ready.inherited)
    }

    /// Entries that are ready now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// No entry is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one step, so a poisoned lock guards sound data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pool is half empty and nobody is filling it; the caller is from now on. Not before: pods that are made
    /// one behind the other are not to share the processors, and the kernel's lock over links, with their successors'
    /// namespaces.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        let low = state.ready.len() <= self.size / 2 && self.size > 0;
        let begins = low && !state.closed && !state.filling && self.inherited.is_some();
        state.filling |= begins;
        begins
    }

    /// Puts an entry in, if there is one, and says whether the next one is wanted; if not, the caller's work is over.
    fn go_on(&self, made: Option<Ready>) -> bool {
        let mut state = self.lock();
        let failed = made.is_none();
        let (wanted, unwanted) = made.into_iter().partition(|ready| ready.generation == state.generation);
        state.ready.extend::<Vec<_>>(wanted);
        state.unwanted.extend::<Vec<_>>(unwanted);
        if failed || state.closed || state.ready.len() >= self.size {
            state.filling = false;
            self.filled.notify_all();
        }
        state.filling
    }

    /// Entries that the host's settings have left behind.
    fn outdated(&self) -> Vec<Ready> {
        let Some(inherited) = &self.inherited else { return Vec::new() };
        let now = inherited.values();
        let mut state = self.lock();
        let (current, outdated) = state.ready.drain(..).partition(|ready| ready.inherited == now);
        state.ready = current;
        state.unwanted.drain(..).chain::<VecDeque<_>>(outdated).collect()
    }

    /// Lets nothing in any more and gives out all that there is.
    fn close(&self) -> Vec<Ready> {
        let mut state = self.lock();
        state.closed = true;
        while state.filling {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut all = std::mem::take(&mut state.unwanted);
        all.extend(state.ready.drain(..));
        all
    }
}

/// Whether a pod of this plan can live in namespaces that were set up without it: they are all its own and the host's
/// root's, and it wants no setting that would have had to be there before the interface.
fn fits(plan: &SandboxPlan) -> bool {
    let early = |name: &String| Sysctl::parse(name).is_ok_and(|sysctl| sysctl.precedes_links());
    let own = !plan.host_network && !plan.host_ipc && plan.user.is_none();
    own && !plan.sysctls.iter().any(|(name, _)| early(name))
}

/// Fills the pool in the background. Called when a pod has been built, and not while: the two would wait for the
/// kernel's one lock over links.
pub fn refill(node: &Arc<Node>) {
    // Where there is a CNI network, nobody would take an entry.
    let embedded = node.network.is_some() && matches!(node.cni.choose(), Ok(None));
    if !embedded || !node.pool.begin() {
        return;
    }
    let node = node.clone();
    tokio::spawn(blocking(move || {
        for ready in node.pool.outdated() {
            end(&node, ready);
        }
        loop {
            let made = match make(&node) {
                Ok(ready) => Some(ready),
                Err(error) => {
                    tracing::warn!(%error, "no namespace could be made ready for the next pod");
                    None
                }
            };
            if !node.pool.go_on(made) {
                return Ok(());
            }
        }
    }));
}

/// Ends all entries and keeps none any more: the daemon is about to end.
///
/// # Errors
/// An internal error.
pub async fn close(node: &Arc<Node>) -> Result<(), RequestError> {
    let node = node.clone();
    blocking(move || {
        for ready in node.pool.close() {
            end(&node, ready);
        }
        Ok(())
    })
    .await
}

/// Ends one entry and gives its addresses back.
fn end(node: &Node, ready: Ready) {
    let detached =
        node.bridge().and_then(|bridge| bridge.detach(&ready.network.host_interface).stage("network"));
    match detached {
        Ok(()) => node.ipam.release(&ready.network.lease()),
        // The addresses are still somebody's. The next start takes the link away.
        Err(error) => tracing::error!(%error, "a link that no pod wants stays behind"),
    }
}

fn make(node: &Node) -> Result<Ready, RequestError> {
    let generation = node.pool.lock().generation;
    let inherited = node.pool.inherited.as_ref().map(Inherited::values).unwrap_or_default();
    let id = Id::random()?;
    let lease = node.ipam.allocate().stage("lease addresses")?;
    let network = NetworkRecord::new(&id, &lease);
    let made = connected(node, &id, &network);
    if made.is_err() {
        node.ipam.release(&lease);
    }
    Ok(Ready { id, network, created: made?, inherited, generation })
}

/// New namespaces on the network.
fn connected(node: &Node, id: &Id, network: &NetworkRecord) -> Result<Created, RequestError> {
    let sysctls = node.bridge()?.sysctls();
    let request =
        namespaces::Request { net: true, ipc: true, uts: true, sysctls: &sysctls, ..Default::default() };
    let (mut created, ()) =
        namespaces::create(&request, |_| Ok::<(), RequestError>(())).stage("namespaces")?;
    attach(node, id, network, &mut created)?;
    Ok(created)
}

/// Joins a pod's network namespace to the bridge, if it has one.
///
/// # Errors
/// The kernel's refusal; nothing stays.
pub fn attach(
    node: &Node,
    id: &Id,
    network: &NetworkRecord,
    created: &mut Created,
) -> Result<(), RequestError> {
    let (Some(netns), Some(inside)) = (&created.net, &mut created.socket) else { return Ok(()) };
    let alias = alias(node, id);
    let request = AttachRequest {
        name: &network.host_interface,
        alias: &alias,
        ifname: "eth0",
        netns: netns.as_fd(),
        inside,
        lease: &network.lease(),
    };
    node.bridge()?.attach(request).stage("network")?;
    Ok(())
}

/// Mark of a pod's links on the host.
#[must_use]
pub fn alias(node: &Node, id: &Id) -> String {
    format!("{}{id}", node.mark())
}
