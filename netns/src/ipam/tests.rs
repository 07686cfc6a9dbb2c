use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn ipam(v4: &str, v6: &str) -> Ipam {
    Ipam::new(Some(v4.parse().unwrap()), Some(v6.parse().unwrap())).unwrap()
}

#[test]
fn network_gateway_and_broadcast_are_never_handed_out() {
    let ipam = ipam("10.1.2.0/29", "fd00::/125");
    let leases: Vec<Lease> = (0..5).map(|_| ipam.allocate().unwrap()).collect();
    let last: Vec<u8> = leases.iter().map(|lease| lease.v4.unwrap().octets()[3]).collect();
    assert_eq!(last, [2, 3, 4, 5, 6]);
    assert_eq!(leases[0].v6, Some("fd00::2".parse().unwrap()));
    assert_eq!(gateway("10.1.2.0/29".parse().unwrap()).to_string(), "10.1.2.1");
    assert_eq!(gateway("fd00::/125".parse().unwrap()).to_string(), "fd00::1");
}

#[test]
fn exhaustion_names_the_subnet_and_takes_nothing() {
    // IPv6 runs out first: its failure must give the IPv4 address back.
    let ipam = ipam("10.1.2.0/28", "fd00::/126");
    let held = [ipam.allocate().unwrap(), ipam.allocate().unwrap()];
    for _ in 0..100 {
        let error = ipam.allocate().unwrap_err();
        assert_eq!(error.to_string(), "no free address in fd00::/126: all 2 are in use");
    }
    ipam.release(&held[0]);
    assert!(ipam.allocate().is_ok());
}

#[test]
fn a_released_address_comes_back_last() {
    let ipam = ipam("10.1.2.0/29", "fd00::/120");
    let first = ipam.allocate().unwrap();
    ipam.release(&first);
    let next: Vec<Lease> = (0..4).map(|_| ipam.allocate().unwrap()).collect();
    assert!(next.iter().all(|lease| lease.v4 != first.v4));
    assert_eq!(ipam.allocate().unwrap().v4, first.v4);
}

#[test]
fn a_reserved_lease_is_in_use_and_the_search_goes_on_behind_it() {
    let ipam = ipam("10.1.2.0/24", "fd00::/64");
    let lease = Lease { v4: Some("10.1.2.9".parse().unwrap()), v6: Some("fd00::20".parse().unwrap()) };
    ipam.reserve(&lease).unwrap();
    assert_eq!(ipam.reserve(&lease), Err(IpamError::InUse { address: "10.1.2.9".parse().unwrap() }));
    let next = ipam.allocate().unwrap();
    assert_eq!(next, Lease { v4: Some("10.1.2.10".parse().unwrap()), v6: Some("fd00::21".parse().unwrap()) });
}

#[test]
fn reserving_half_a_lease_takes_nothing() {
    let ipam = ipam("10.1.2.0/24", "fd00::/64");
    let outside = Lease { v4: Some("10.1.2.9".parse().unwrap()), v6: Some("fd01::9".parse().unwrap()) };
    assert_eq!(ipam.reserve(&outside), Err(IpamError::Outside { address: "fd01::9".parse().unwrap() }));
    ipam.reserve(&Lease { v6: None, ..outside }).unwrap();
}

#[test]
fn reserving_what_is_never_handed_out_is_refused() {
    let ipam = ipam("10.1.2.0/24", "fd00::/64");
    for address in ["10.1.2.0", "10.1.2.1", "10.1.2.255", "10.1.3.2", "10.1.1.255"] {
        let lease = Lease { v4: Some(address.parse().unwrap()), v6: None };
        assert!(matches!(ipam.reserve(&lease), Err(IpamError::Outside { .. })), "{address}");
    }
}

#[test]
fn a_subnet_without_room_is_refused() {
    for subnet in ["10.0.0.0/31", "10.0.0.0/32"] {
        assert!(matches!(Ipam::new(Some(subnet.parse().unwrap()), None), Err(IpamError::TooSmall { .. })));
    }
    assert!(Ipam::new(Some("10.0.0.0/30".parse().unwrap()), None).is_ok());
    assert!(matches!(Ipam::new(None, Some("fd00::/127".parse().unwrap())), Err(IpamError::TooSmall { .. })));
}

#[test]
fn host_bits_of_a_configured_subnet_do_not_shift_the_pool() {
    let ipam = ipam("10.1.2.77/24", "fd00::77/64");
    assert_eq!(ipam.allocate().unwrap().v4, Some("10.1.2.2".parse().unwrap()));
}

#[test]
fn leases_of_an_earlier_subnet_stay_taken_where_the_next_one_overlaps_it() {
    let ipam = ipam("10.0.0.0/16", "fd00::/64");
    let old = ipam.allocate().unwrap();
    ipam.hand_out("10.0.0.0/24".parse().ok(), None).unwrap();
    let new = ipam.allocate().unwrap();
    assert_eq!((old.v4, new.v4), ("10.0.0.2".parse().ok(), "10.0.0.3".parse().ok()));
    assert_eq!(new.v6, None);
    assert_eq!(
        ipam.reserve(&Lease { v4: new.v4, v6: None }),
        Err(IpamError::InUse { address: "10.0.0.3".parse().unwrap() })
    );
    ipam.release(&new);
    // Back to the first: what the second has in use is in use there too.
    let held = ipam.allocate().unwrap();
    ipam.hand_out("10.0.0.0/16".parse().ok(), "fd00::/64".parse().ok()).unwrap();
    let all: HashSet<_> = (0..8).map(|_| ipam.allocate().unwrap().v4).collect();
    assert_eq!(all.len(), 8);
    assert!(!all.contains(&old.v4) && !all.contains(&held.v4));
    assert!(ipam.hand_out("10.0.0.0/32".parse().ok(), None).is_err());
    assert!(ipam.allocate().unwrap().v6.is_some());
}

proptest! {
    /// Any order of takes and releases: no address is ever held twice, what is released can be taken again, and the
    /// pool gives out exactly as many addresses as it has.
    #[test]
    fn no_address_has_two_holders(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..300)) {
        const CAPACITY: usize = 13;
        let ipam = ipam("10.1.2.0/28", "fd00::/64");
        let mut held: Vec<Lease> = Vec::new();
        for (take, which) in steps {
            if take {
                match ipam.allocate() {
                    Ok(lease) => {
                        prop_assert!(held.len() < CAPACITY);
                        held.push(lease);
                    }
                    Err(error) => {
                        prop_assert_eq!(held.len(), CAPACITY);
                        prop_assert_eq!(error, IpamError::Exhausted {
                            subnet: "10.1.2.0/28".parse().unwrap(), capacity: CAPACITY,
                        });
                    }
                }
            } else if !held.is_empty() {
                let lease = held.swap_remove(which.index(held.len()));
                ipam.release(&lease);
                // Twice: releasing what is free changes nothing.
                ipam.release(&lease);
            }
            let distinct: HashSet<IpAddr> = held.iter().flat_map(Lease::addresses).collect();
            prop_assert_eq!(distinct.len(), held.len() * 2);
        }
        // What the records say is enough to carry on after a restart.
        let restarted = Ipam::new(Some("10.1.2.0/28".parse().unwrap()), Some("fd00::/64".parse().unwrap())).unwrap();
        for lease in &held {
            prop_assert_eq!(restarted.reserve(lease), Ok(()));
        }
        let free = (held.len()..CAPACITY).map(|_| restarted.allocate().unwrap());
        let all: HashSet<IpAddr> = free.chain(held.iter().cloned()).flat_map(|lease| lease.addresses().collect::<Vec<_>>()).collect();
        prop_assert_eq!(all.len(), CAPACITY * 2);
    }
}
