//! crisp from outside: built binaries, a real kernel, the real socket. Each test states a rule that holds.
//!
//! Every test gets a daemon of its own and has to leave the host as it found it. Run through hack/test, which sets up
//! the place: hack/node (private namespaces on this machine) or hack/vm (a kernel with cgroup v2 controllers).
//!
//! Environment: `CRISP_E2E=require` turns a missing capability from "ignored" into a failure; `CRISP_E2E_SET` is `all`
//! (default) or one of the sets that docs/testing.md lists.

mod apparmor;
mod broken_records;
mod case;
mod cdi;
mod cgroups;
mod cni;
mod cni_faults;
mod container;
mod contract;
mod credentials;
mod crictl;
mod daemon;
mod descriptors;
mod devices;
mod disturbances;
mod exec_limits;
mod execs;
mod floods;
mod forward_ends;
mod given_up;
mod host_ports;
mod host_reach;
mod hostile_accounts;
mod hostile_proc;
mod ids;
mod image_crashes;
mod image_files;
mod inspection;
mod interactive;
mod limits;
mod log_paths;
mod logs;
mod mount_requests;
mod namespaces;
mod netns_command;
mod network;
mod new_mounts;
mod own_processes;
mod own_program;
mod pairs;
mod picture;
mod planted;
mod play;
mod play_features;
mod pod_fields;
mod pod_kills;
mod pods;
mod pool;
mod port_forward;
mod power_cuts;
mod processes;
mod programs;
mod propagation;
mod pulls;
mod races;
mod refusals;
mod reports;
mod resistance;
mod resources;
mod restart;
mod sandbox;
mod seccomp;
mod sizes;
mod starvation;
mod stops;
mod stream_tls;
mod streaming;
mod streaming_hostile;
mod sysctls;
mod terminal;
mod transport;
mod two_nodes;
mod untouched;
mod userns;
mod userns_refused;
mod volumes;
mod ways_out;

use std::process::ExitCode;

use crisp_tests::{node, plugin};
use libtest_mimic::{Arguments, Conclusion};

fn main() -> ExitCode {
    if plugin::called() {
        return plugin::run();
    }
    let mut arguments = Arguments::from_args();
    // Tests share the host's mount and network namespace, and each looks at all of it.
    arguments.test_threads = Some(1);
    let all = [
        contract::CASES,
        processes::CASES,
        cni::CASES,
        cni_faults::CASES,
        programs::CASES,
        sandbox::CASES,
        container::CASES,
        descriptors::CASES,
        devices::CASES,
        disturbances::CASES,
        floods::CASES,
        given_up::CASES,
        ids::CASES,
        cdi::CASES,
        pods::CASES,
        play_features::CASES,
        picture::CASES,
        crictl::CASES,
        logs::CASES,
        namespaces::CASES,
        netns_command::CASES,
        network::CASES,
        host_ports::CASES,
        two_nodes::CASES,
        pod_kills::CASES,
        pool::CASES,
        own_processes::CASES,
        own_program::CASES,
        cgroups::CASES,
        limits::CASES,
        log_paths::CASES,
        resistance::CASES,
        resources::CASES,
        reports::CASES,
        power_cuts::CASES,
        pulls::CASES,
        image_crashes::CASES,
        image_files::CASES,
        pairs::CASES,
        restart::CASES,
        seccomp::CASES,
        apparmor::CASES,
        credentials::CASES,
        sizes::CASES,
        starvation::CASES,
        stops::CASES,
        sysctls::CASES,
        hostile_accounts::CASES,
        transport::CASES,
        hostile_proc::CASES,
        new_mounts::CASES,
        host_reach::CASES,
        pod_fields::CASES,
        volumes::CASES,
        ways_out::CASES,
        terminal::CASES,
        races::CASES,
        planted::CASES,
        propagation::CASES,
        mount_requests::CASES,
        refusals::CASES,
        daemon::CASES,
        broken_records::CASES,
        stream_tls::CASES,
        streaming::CASES,
        streaming_hostile::CASES,
        execs::CASES,
        exec_limits::CASES,
        interactive::CASES,
        forward_ends::CASES,
        port_forward::CASES,
        untouched::CASES,
        userns::CASES,
        userns_refused::CASES,
    ];
    let trials = case::trials(all.into_iter().flatten());
    let listed_only = arguments.list;
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials);
    if !listed_only && let Err(error) = node::remove_shared_root() {
        report(&format!("{error:#}"));
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

#[expect(clippy::print_stderr, reason = "the one message that no test can carry")]
fn report(text: &str) {
    eprintln!("{text}");
}
