//! How much an attached namespace may send and receive: token buckets (tc-tbf(8)) on the host's side, where the
//! namespace cannot take them away.
//!
//! ```text
//!   to the namespace:    host ──► [tbf] cr0123… ═══ eth0
//!   from the namespace:  host ◄── [tbf] icr0123… ◄── redirected ◄── cr0123… ═══ eth0
//! ```
//!
//! The kernel queues only what leaves a link, so what comes out of the namespace is redirected through one of kind ifb,
//! named as the host's end with an `i` in front.
//!
//! It must not know where the limits come from.

use crisp_sys::netlink::Message;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

/// `include/uapi/linux/rtnetlink.h`.
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `include/uapi/linux/pkt_sched.h`.
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const HANDLE_INGRESS: u32 = 0xffff_0000;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// `include/uapi/linux/pkt_cls.h`, `tc_act/tc_mirred.h`.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: i32 = 4;
const TCA_EGRESS_REDIR: i32 = 1;
const ETH_P_ALL: u16 = 3;

/// Least burst, bytes: a whole segment as the stack hands it over, so that none has to be cut.
const BURST_MIN: u64 = 64 << 10;
/// Largest burst, bytes. A `u32` of the kernel, and no use beyond.
const BURST_MAX: u64 = 16 << 20;

/// Bits a second; `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What the namespace receives.
    pub ingress: Option<u64>,
    /// What it sends.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// Whether there is a limit.
    pub(super) fn is_limited(self) -> bool {
        self != Self::default()
    }
}

/// Bytes that may go at once at a rate in bytes a second: a twentieth of a second's worth.
fn burst(rate: u64) -> u32 {
    u32::try_from((rate / 20).clamp(BURST_MIN, BURST_MAX)).unwrap_or(u32::MAX)
}

/// Limits what leaves the link with this index to `bits` a second.
pub(super) fn limit(index: u32, bits: u64) -> Message {
    let rate = (bits / 8).max(1);
    let burst = burst(rate);
    // What waits longer than 25 ms is dropped.
    let limit = u32::try_from(u64::from(burst) + rate / 40).unwrap_or(u32::MAX);
    let mut parameters = Vec::new();
    // struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec), limit, buffer, mtu. The link layer's name spares the
    // kernel a table of rates, the attribute for the burst its buffer in ticks.
    for (layer, rate) in [(TC_LINKLAYER_ETHERNET, u32::try_from(rate).unwrap_or(u32::MAX)), (0, 0)] {
        parameters.extend_from_slice(&[0, layer, 0, 0, 0, 0, 0, 0]);
        parameters.extend_from_slice(&rate.to_ne_bytes());
    }
    for field in [limit, 0, 0] {
        parameters.extend_from_slice(&field.to_ne_bytes());
    }
    let mut options = attribute(TCA_TBF_PARMS, &parameters);
    if rate > u64::from(u32::MAX) {
        options.extend(attribute(TCA_TBF_RATE64, &rate.to_ne_bytes()));
    }
    options.extend(attribute(TCA_TBF_BURST, &burst.to_ne_bytes()));
    let place = Place { index, handle: 0x0001_0000, parent: TC_H_ROOT, info: 0 };
    message(RTM_NEWQDISC, &place, "tbf", &options)
}

/// Sends what comes in by the link `from` out by the link `to`.
pub(super) fn redirect(from: u32, to: u32) -> [Message; 2] {
    let queue = Place { index: from, handle: HANDLE_INGRESS, parent: TC_H_INGRESS, info: 0 };
    let ingress = message(RTM_NEWQDISC, &queue, "ingress", &[]);
    // struct tc_u32_sel with one struct tc_u32_key that every packet fits.
    let mut selector = vec![TC_U32_TERMINAL, 0, 1, 0];
    selector.resize(16 + 16, 0);
    // struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex.
    let mut mirred = Vec::new();
    for field in [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to.cast_signed()] {
        mirred.extend_from_slice(&field.to_ne_bytes());
    }
    let action = [
        attribute(TCA_ACT_KIND, b"mirred\0"),
        attribute(TCA_ACT_OPTIONS, &attribute(TCA_MIRRED_PARMS, &mirred)),
    ]
    .concat();
    // Actions are numbered from 1.
    let options =
        [attribute(TCA_U32_SEL, &selector), attribute(TCA_U32_ACT, &attribute(1, &action))].concat();
    let info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
    let place = Place { index: from, handle: 0, parent: HANDLE_INGRESS, info };
    let filter = message(RTM_NEWTFILTER, &place, "u32", &options);
    [ingress, filter]
}

/// Where a queue or a filter is: `struct tcmsg` without the family.
struct Place {
    /// The link.
    index: u32,
    handle: u32,
    parent: u32,
    /// Of a filter: priority in the upper, protocol in network order in the lower half.
    info: u32,
}

/// `struct tcmsg` and its attributes.
fn message(kind: u16, place: &Place, name: &str, options: &[u8]) -> Message {
    let mut payload = vec![0; 4];
    for field in [place.index, place.handle, place.parent, place.info] {
        payload.extend_from_slice(&field.to_ne_bytes());
    }
    payload.extend(attribute(TCA_KIND, &[name.as_bytes(), b"\0"].concat()));
    if !options.is_empty() {
        payload.extend(attribute(TCA_OPTIONS, options));
    }
    Message { kind, flags: NLM_F_CREATE | NLM_F_EXCL, payload }
}

/// `struct nlattr`, its value and padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
