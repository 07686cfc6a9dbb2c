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

/// The pools of one network. Of each subnet the first 65536 addresses are used, less the network's own, the gateway
/// and IPv4's broadcast.
#[derive(Debug)]
pub struct Ipam {
    pools: Mutex<Pools>,
}

#[derive(Debug)]
struct Pools {
    v4: Option<Pool>,
    v6: Option<Pool>,
}

impl Ipam {
    /// Pools in which everything is free.
    ///
    /// # Errors
    /// [`IpamError::TooSmall`].
    pub fn new(ipv4: Option<Ipv4Net>, ipv6: Option<Ipv6Net>) -> Result<Self, IpamError> {
        let v4 = ipv4.map(|net| Pool::new(net.trunc().into())).transpose()?;
        let v6 = ipv6.map(|net| Pool::new(net.trunc().into())).transpose()?;
        Ok(Self { pools: Mutex::new(Pools { v4, v6 }) })
    }

    /// Takes one address of each subnet.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`], which names the subnet; nothing is taken then.
    pub fn allocate(&self) -> Result<Lease, IpamError> {
        let mut pools = self.lock();
        let v4 = pools.v4.as_mut().map(Pool::take).transpose()?;
        let v6 = match pools.v6.as_mut().map(Pool::take).transpose() {
            Ok(v6) => v6,
            Err(exhausted) => {
                if let (Some(pool), Some(address)) = (&mut pools.v4, v4) {
                    pool.release(address);
                }
                return Err(exhausted);
            }
        };
        let lease = [v4, v6].into_iter().flatten().fold(Lease::default(), |lease, address| match address {
            IpAddr::V4(v4) => Lease { v4: Some(v4), ..lease },
            IpAddr::V6(v6) => Lease { v6: Some(v6), ..lease },
        });
        Ok(lease)
    }

    /// Takes the addresses of a recorded lease.
    ///
    /// # Errors
    /// [`IpamError::InUse`] and [`IpamError::Outside`]; nothing is taken then.
    pub fn reserve(&self, lease: &Lease) -> Result<(), IpamError> {
        let mut pools = self.lock();
        for address in lease.addresses() {
            let pool = pools.of(address).ok_or(IpamError::Outside { address })?;
            if pool.is_used(address)? {
                return Err(IpamError::InUse { address });
            }
        }
        for address in lease.addresses() {
            if let Some(pool) = pools.of(address) {
                pool.reserve(address)?;
            }
        }
        Ok(())
    }

    /// Gives the addresses of a lease back. Releasing what is free, or what belongs to no subnet, changes nothing.
    pub fn release(&self, lease: &Lease) {
        let mut pools = self.lock();
        for address in lease.addresses() {
            if let Some(pool) = pools.of(address) {
                pool.release(address);
            }
        }
    }

    /// Every method leaves the pools whole before it can panic, so a poisoned lock guards sound data.
    fn lock(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    fn of(&mut self, address: IpAddr) -> Option<&mut Pool> {
        match address {
            IpAddr::V4(_) => self.v4.as_mut(),
            IpAddr::V6(_) => self.v6.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests;
