//! Which addresses of the subnets are in use.
//!
//! Addresses are handed out next-fit: the search goes on behind the last one given, so that an address that was just
//! released is the last to come back, and neither a stale neighbour entry nor a slow client meets its next owner.
//!
//! The pools live in memory. A lease is recorded by whoever holds it, and reserved again from that record at start.
//! It must not know who holds a lease.

mod pool;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use pool::Pool;

/// The addresses of one interface. At most one of each family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The IPv4 address, where there is an IPv4 subnet.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address, where there is an IPv6 subnet.
    pub v6: Option<Ipv6Addr>,
}

impl Lease {
    /// The addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// Why an address was not given or reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address of a subnet is in use.
    #[error("no free address in {subnet}: all {capacity} are in use")]
    Exhausted {
        /// The subnet.
        subnet: IpNet,
        /// How many addresses of it are handed out at most.
        capacity: usize,
    },
    /// A recorded address is used by another lease.
    #[error("address {address} is in use already")]
    InUse {
        /// The address.
        address: IpAddr,
    },
    /// A recorded address is none that is handed out: the subnets were changed since. Nobody else can get it, so its
    /// owner may go on.
    #[error("address {address} is not one of the configured subnets")]
    Outside {
        /// The address.
        address: IpAddr,
    },
    /// A subnet that leaves no address to hand out.
    #[error(
        "subnet {subnet} is too small: nothing is left beside its network, gateway and broadcast addresses"
    )]
    TooSmall {
        /// The subnet.
        subnet: IpNet,
    },
}

/// The address that the bridge itself holds: the first behind the network's own.
pub fn gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(1)).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(1)).into(),
    }
}

/// Whether a subnet has an address to hand out.
///
/// # Errors
/// [`IpamError::TooSmall`].
pub fn check(subnet: IpNet) -> Result<(), IpamError> {
    Pool::new(subnet.trunc()).map(|_| ())
}

/// The pools of one network. Of each subnet the first 65536 addresses are used, less the network's own, the gateway
/// and IPv4's broadcast.
#[derive(Debug)]
pub struct Ipam {
    pools: Mutex<Pools>,
}

#[derive(Debug)]
struct Pools {
    /// Those that are handed out from, and earlier ones in which leases may still be.
    all: Vec<Pool>,
    /// Handed out from, IPv4 first.
    current: Vec<IpNet>,
}

impl Ipam {
    /// Pools in which everything is free.
    ///
    /// # Errors
    /// [`IpamError::TooSmall`].
    pub fn new(ipv4: Option<Ipv4Net>, ipv6: Option<Ipv6Net>) -> Result<Self, IpamError> {
        let ipam = Self { pools: Mutex::new(Pools { all: Vec::new(), current: Vec::new() }) };
        ipam.hand_out(ipv4, ipv6)?;
        Ok(ipam)
    }

    /// Hands out addresses of these subnets from now on. What is leased of others stays so, also where they overlap.
    ///
    /// # Errors
    /// [`IpamError::TooSmall`]; nothing is changed then.
    pub fn hand_out(&self, ipv4: Option<Ipv4Net>, ipv6: Option<Ipv6Net>) -> Result<(), IpamError> {
        let subnets = ipv4.map(IpNet::V4).into_iter().chain(ipv6.map(IpNet::V6));
        let wanted: Vec<IpNet> = subnets.map(|subnet| subnet.trunc()).collect();
        wanted.iter().try_for_each(|subnet| check(*subnet))?;
        let mut pools = self.lock();
        for subnet in &wanted {
            if pools.all.iter().any(|pool| pool.subnet() == *subnet) {
                continue;
            }
            let mut pool = Pool::new(*subnet)?;
            for address in pools.all.iter().flat_map(Pool::used) {
                // Most are of other subnets.
                let _ = pool.reserve(address);
            }
            pools.all.push(pool);
        }
        pools.current = wanted;
        Ok(())
    }

    /// Takes one address of each subnet.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], which names the subnet; nothing is taken then.
    pub fn allocate(&self) -> Result<Lease, IpamError> {
        let mut pools = self.lock();
        let mut lease = Lease::default();
        for subnet in pools.current.clone() {
            let taken = pools.all.iter_mut().find(|pool| pool.subnet() == subnet).map(Pool::take);
            match taken {
                Some(Ok(address)) => {
                    pools.mark(address);
                    match address {
                        IpAddr::V4(v4) => lease.v4 = Some(v4),
                        IpAddr::V6(v6) => lease.v6 = Some(v6),
                    }
                }
                Some(Err(exhausted)) => {
                    lease.addresses().for_each(|address| pools.release(address));
                    return Err(exhausted);
                }
                None => {}
            }
        }
        Ok(lease)
    }

    /// Takes the addresses of a recorded lease.
    ///
    /// # Errors
    /// [`IpamError::InUse`] and [`IpamError::Outside`]; nothing is taken then.
    pub fn reserve(&self, lease: &Lease) -> Result<(), IpamError> {
        let mut pools = self.lock();
        for address in lease.addresses() {
            let around = pools.all.iter().filter_map(|pool| pool.is_used(address).ok());
            match around.reduce(|one, other| one || other) {
                None => return Err(IpamError::Outside { address }),
                Some(true) => return Err(IpamError::InUse { address }),
                Some(false) => {}
            }
        }
        lease.addresses().for_each(|address| pools.mark(address));
        Ok(())
    }

    /// Gives the addresses of a lease back. Releasing what is free, or what belongs to no subnet, changes nothing.
    pub fn release(&self, lease: &Lease) {
        let mut pools = self.lock();
        lease.addresses().for_each(|address| pools.release(address));
    }

    /// Every method leaves the pools whole before it can panic, so a poisoned lock guards sound data.
    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    /// Subnets may overlap: an address is in use in all that it is of.
    fn mark(&mut self, address: IpAddr) {
        for pool in &mut self.all {
            let _ = pool.reserve(address);
        }
    }

    fn release(&mut self, address: IpAddr) {
        self.all.iter_mut().for_each(|pool| pool.release(address));
    }
}

#[cfg(test)]
mod tests;
