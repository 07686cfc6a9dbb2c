# shellcheck shell=bash
# To be sourced: where things that need cgroup limits run.

# Whether this host's cgroup v2 has the controllers that limits need.
host_has_controllers() {
  local tree controller
  tree=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/self/mounts)
  [ -n "$tree" ] || return 1
  for controller in cpu cpuset memory pids; do
    grep -qw "$controller" "$tree/cgroup.controllers" || return 1
  done
}
