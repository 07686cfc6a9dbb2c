//! The bitmap of one subnet. Address = network address + index.
//!
//! It must not know that there is another subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::IpamError;

/// Addresses of a subnet that are handed out at most: 8 KiB of bitmap, and far more than a node has pods.
const WINDOW_BITS: u8 = 16;

/// The network's own address and the gateway.
const RESERVED: usize = 2;

#[derive(Debug)]
pub(super) struct Pool {
    subnet: IpNet,
    /// One bit an index, 1 = in use or never handed out.
    words: Vec<u64>,
    /// Where the next search starts, an index.
    next: usize,
    /// One behind the last index that may be handed out.
    end: usize,
}

impl Pool {
    pub(super) fn new(subnet: IpNet) -> Result<Self, IpamError> {
        let host_bits = subnet.max_prefix_len() - subnet.prefix_len();
        let size = 1usize << host_bits.min(WINDOW_BITS);
        // The last address of an IPv4 subnet is its broadcast; a window that ends before it has no such address.
        let broadcast = matches!(subnet, IpNet::V4(_)) && host_bits <= WINDOW_BITS;
        let end = size - usize::from(broadcast);
        if end <= RESERVED {
            return Err(IpamError::TooSmall { subnet });
        }
        let mut words = vec![0; size.div_ceil(64)];
        words[0] |= (1 << RESERVED) - 1;
        Ok(Self { subnet, words, next: RESERVED, end })
    }

    pub(super) fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Every address in use.
    pub(super) fn used(&self) -> impl Iterator<Item = IpAddr> {
        (RESERVED..self.end).filter(|index| self.bit(*index)).map(|index| self.address(index))
    }

    /// Takes the next free address.
    pub(super) fn take(&mut self) -> Result<IpAddr, IpamError> {
        let free =
            (self.next..self.end).chain(RESERVED..self.next.min(self.end)).find(|index| !self.bit(*index));
        let index =
            free.ok_or(IpamError::Exhausted { subnet: self.subnet, capacity: self.end - RESERVED })?;
        self.mark(index);
        Ok(self.address(index))
    }

    pub(super) fn is_used(&self, address: IpAddr) -> Result<bool, IpamError> {
        self.index(address).map(|index| self.bit(index)).ok_or(IpamError::Outside { address })
    }

    /// Marks a recorded address as used. The search goes on behind it, as if it had just been handed out: the address
    /// that a restart of the daemon would otherwise give next is the one that was released last before it.
    pub(super) fn reserve(&mut self, address: IpAddr) -> Result<(), IpamError> {
        let index = self.index(address).ok_or(IpamError::Outside { address })?;
        if !self.bit(index) {
            self.mark(index);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        let Some(index) = self.index(address) else { return };
        if self.bit(index) {
            self.words[index / 64] &= !(1 << (index % 64));
        }
    }

    fn bit(&self, index: usize) -> bool {
        self.words[index / 64] & (1 << (index % 64)) != 0
    }

    fn mark(&mut self, index: usize) {
        self.words[index / 64] |= 1 << (index % 64);
        self.next = index + 1;
    }

    /// `None` for an address that this pool never hands out.
    fn index(&self, address: IpAddr) -> Option<usize> {
        let offset = match (self.subnet, address) {
            (IpNet::V4(net), IpAddr::V4(v4)) => {
                u128::from(v4.to_bits().checked_sub(net.network().to_bits())?)
            }
            (IpNet::V6(net), IpAddr::V6(v6)) => v6.to_bits().checked_sub(net.network().to_bits())?,
            _ => return None,
        };
        usize::try_from(offset).ok().filter(|index| (RESERVED..self.end).contains(index))
    }

    fn address(&self, index: usize) -> IpAddr {
        match self.subnet {
            // `index` is below 2^16.
            IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() + index as u32).into(),
            IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() + index as u128).into(),
        }
    }
}
