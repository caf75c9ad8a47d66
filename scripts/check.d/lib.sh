# shellcheck shell=bash  # sourced by the steps
# What the steps of `make check` share: the kernel, the project's files, and counting.

# A step that can't run on every kernel says in step_kernels on which it can, by patterns. VM_KERNEL chooses among them; else
# it is the first.
if [ -n "${step_kernels:-}" ]; then
    read -ra patterns <<<"$step_kernels"
    kernel=${patterns[0]}
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053  # a pattern
        [[ ${VM_KERNEL:-} != $pattern ]] || kernel=$VM_KERNEL
    done
    export VM_KERNEL=$kernel
fi
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$root" || exit

passed=0
failed=0

# Has the kernel made, if it is not there. Which release it is, is known then.
need_kernel() {
    scripts/kernel
    . scripts/env.sh
}

# need_in_debian PACKAGE...: has them in the root of Debian's kernel. For what only one step wants, and what is large.
need_in_debian() {
    [ "$debian_root" = "$debian_tools_root" ] || fail "VM_ARCH is '$arch': only the VM of this machine gets $*"
    scripts/in-debian sh -c '! dpkg-query -W -f "\${db:Status-Status}\n" "$@" 2>&1 | grep -qvx installed' - "$@" || flock "$debian_tools_root.lock" env debian_root_locked=1 scripts/in-debian sh -c \
        'apt-get -y install "$@" || { apt-get update && apt-get -y install "$@"; }' - "$@"
}

# The files whose path matches one of the patterns: those in git, and new ones that git does not ignore.
project_files() {
    git ls-files --cached --others --exclude-standard -- "$@" | sort -u | while read -r file; do
        [ ! -e "$file" ] || echo "$file"
    done
}

# check NAME COMMAND...: one test, which passes when COMMAND does. What it prints is shown when it fails.
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok $name"
    else
        failed=$((failed + 1))
        echo "not ok $name"
        sed 's/^/    /' <<<"$output"
    fi
}

# The module's build for the kernel, all of it anew, or what was built before would be silent.
builds_silently() {
    mkdir -p "$build"
    check "$VM_KERNEL: no warning" build_silently
}
build_silently() {
    local output
    # shellcheck disable=SC2016  # for the inner shell
    output=$(flock "$module_lock" sh -c 'rm -rf "$0" && make modules' "$module_out" 2>&1) || {
        echo "$output"
        return 1
    }
    # Debian has no vmlinux for anybody's BTF.
    ! grep -iE 'warning|falls through' <<<"$output" | grep -v 'Skipping BTF generation'
}

# kselftest COMMAND: module-checks and a command that prints KTAP, in one VM; counts their tests.
kselftest() {
    [ "$flavour" = installed ] || NEED_CARGO=1 scripts/kernel
    scripts/cargo tests/kselftest build --release

    local ktap=$build/check/kselftest-$flavour.ktap status=0 planned good
    mkdir -p "$build/check"
    tests/vm/run "a=0 b=0; tests/vm/module-checks || a=\$?; $1 || b=\$?; exit \$((a + b))" >"$ktap" || status=$?
    cat "$ktap"
    # A skipped test is not a passed one, and neither is one that was planned and did not report.
    good=$(grep -E '^ok [0-9]' "$ktap" | grep -civE '# *skip' || true)
    planned=$(awk -F'[. ]+' '/^1\.\.[0-9]/ { n += $2 } END { print n + 0 }' "$ktap")
    passed=$((passed + good))
    failed=$((failed + (planned > good ? planned - good : 0)))
    if [ $status -ne 0 ] && [ $failed -eq 0 ]; then
        echo "not ok the VM's exit status is $status"
        failed=1
    fi
}

finish() {
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ] && [ $passed -gt 0 ]
}
