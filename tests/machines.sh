#!/usr/bin/env bash
# What tests/test_nodes.py needs beside Python: sshd, pdsh, SLURM. As root on Debian or Ubuntu it is installed; elsewhere these tests skip.
set -euo pipefail
programs="sshd pdsh slurmctld slurmd munged ip nsenter pgrep"
PATH=$PATH:/usr/sbin:/sbin
missing=$(for program in $programs; do command -v "$program" >/dev/null || echo "$program"; done)
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests of several machines are skipped: $(echo $missing) missing, and this is not root with apt-get"
    exit 0
fi
echo "installing what tests of several machines need:" $missing
export DEBIAN_FRONTEND=noninteractive
# no service starts by itself: the tests start their own, in namespaces
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends openssh-server pdsh slurm-wlm munge iproute2 procps util-linux; } >/dev/null 2>&1; then
    echo "they could not be installed: these tests are skipped"
fi
