# shellcheck shell=bash disable=SC2034  # sourced by scripts/kernel, whose functions use these variables
# Debian's own kernels, for VM_KERNEL=debian and the like: a root of that Debian in the cache, with the kernel and its
# compilers as apt installs them, and in the build folder what a Rust module needs beyond the header packages.
#
# Nothing of the kernel is built but Rust's metadata. That takes longest, so the rest is installed meanwhile.

# What makes the metadata and the module; what the VM runs.
debian_tools=(
    bc bindgen bison cpio debian-archive-keyring flex gcc-14 kmod libc6-dev libdw-dev libelf-dev libssl-dev make openssl pahole perl
    python3 rsync rust-src rustc rustfmt xz-utils "linux-headers-$debian_package" linux-base "linux-source-$debian_series"
)
# And the kernel's own two packages, for linux-image wants an initramfs.
debian_runtime=(
    bpftrace busybox-static iperf3 iproute2 iputils-ping linux-perf procps qemu-system-x86 tmux udev
)

debian_identity() {
    {
        cat "$debian_root/.vhost-net-packages"
        echo "${debian_tools[*]} ${debian_runtime[*]}"
    } 2>&1 | sha256sum | cut -d ' ' -f 1
}

debian_is_ready() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(debian_identity)" ] && [ -z "$(missing_packages)" ] && has_virtme
}

# The root's packages are Debian's, from the mirror and with the settings that the user's apt has.
step_root() {
    [ ! -e "$debian_root/.vhost-net-packages" ] || return 0
    [ "$(id -u)" -eq 0 ] || {
        echo "Debian's kernels need root, for chroot; VM_KERNEL=base does not" >&4
        return 1
    }
    local work=$debian_root.part packages
    # What an interrupted run left behind may be mounted no more, for its namespace is gone.
    rm -rf --one-file-system "$work"
    mkdir -p "$work"
    apt-config dump --no-empty --format '%f "%v";%n' Acquire | grep -vi '^Acquire::IndexTargets' >"$cache/debian/apt.conf" || true
    packages=$(printf '%s,' "${debian_tools[@]}")
    # Of the backports only what belongs to the kernel.
    "$root/scripts/apt" "$debian_suite" sources |
        mmdebstrap --mode=root --variant=minbase --architectures=amd64 \
            --aptopt="$cache/debian/apt.conf" --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "2"' \
            --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --setup-hook="cp '$root/scripts/debian-preferences' \"\$1/etc/apt/preferences.d/kernel\"" \
            --include="${packages%,}" --skip=cleanup/apt/lists "$debian_suite" "$work" - || {
        echo "Could not make a root of Debian $debian_suite: is the network there?" >&4
        return 1
    }
    echo "${debian_tools[*]}" >"$work/.vhost-net-packages"
    rm -rf --one-file-system "$debian_root"
    mv "$work" "$debian_root"
}

# The newest kernel of this flavour that is installed in the root.
debian_release() {
    dpkg-query --root="$debian_root" -W -f '${Depends}\n' "linux-headers-$debian_package" |
        grep -o 'linux-headers-[^ ,]*' | sed 's/^linux-headers-//' | head -n 1
}

in_debian() {
    "$root/scripts/in-debian" "$@"
}

debian_install() {
    cp -L /etc/resolv.conf /etc/hosts "$debian_root/etc/"
    # The package lists are those of the day when the root was made.
    in_debian apt-get -y install "$@" || { in_debian apt-get update && in_debian apt-get -y install "$@"; }
}

step_metadata() {
    local pid status=0
    # Another flavour's root may lack this one's headers.
    in_debian sh -c 'dpkg-query -W "$@" >/dev/null 2>&1' - "${debian_tools[@]}" || debian_install "${debian_tools[@]}"
    debian_release >"$kdir.release"
    in_debian dkms/prepare-kernel "$(debian_release)" "$kdir" 2>"$kdir.reason" &
    pid=$!
    # Not before the other is over, whatever becomes of this.
    debian_install "${debian_runtime[@]}" "linux-binary-$(debian_release)" "linux-modules-$(debian_release)" || status=$?
    wait $pid || {
        tail -n 1 "$kdir.reason" >&4
        cat "$kdir.reason"
        return 1
    }
    [ $status -eq 0 ] || {
        echo "Could not install in the root of Debian $debian_suite: ${debian_runtime[*]}, or the kernel" >&4
        return 1
    }
}

# The modules that the root's file system and the console need, for Debian's kernel has none of them built in.
step_initramfs() {
    local work
    work=$(mktemp -d)
    install "$root/tests/vm/root-init" "$work/init"
    "$root/tests/vm/make-initramfs" "$work" "$kdir/.vhost-net-initramfs" 9p 9pnet_virtio virtio_console
    rm -rf "$work"
}

debian_main() {
    step_count=5
    step_logs=$cache/logs/$flavour
    if [ "${1:-}" = --print ]; then
        [ -e "$stamp" ] || fail "the kernel $flavour is not set up yet; 'make kernel VM_KERNEL=$flavour' does that"
        echo "$kdir"
        return
    fi
    if debian_is_ready; then
        echo "Debian's kernel $(cat "$kdir.release") is ready in $kdir" >&2
        return
    fi
    mkdir -p "$cache/debian"
    exec 9>"$cache/debian/lock"
    flock -n 9 || {
        echo "Another make kernel is at work; waiting for it." >&2
        flock 9
        ! debian_is_ready || return 0
    }
    echo "Setting up Debian's own kernel in $cache; a first run takes about 8 minutes." >&2
    step 'install Debian packages' step_packages
    step 'install virtme-ng' step_virtme
    step "make a root of Debian $debian_suite" step_root
    rm -f "$stamp"
    step "make the kernel's Rust metadata, and install the kernel" step_metadata
    step 'make an initramfs' step_initramfs
    debian_identity >"$stamp.part"
    mv "$stamp.part" "$stamp"
    echo "Debian's kernel $(cat "$kdir.release") is ready in $kdir" >&2
}
