# shellcheck shell=bash disable=SC2034  # sourced by scripts/kernel, whose functions use these variables
# Debian's own kernels, for VM_KERNEL=debian and the like: a root of that Debian in the cache, with the kernel and its
# compilers as apt installs them, and in the build folder what a Rust module needs beyond the header packages.
#
# Nothing of the kernel is built but Rust's metadata. That takes longest, so the rest is installed meanwhile.

# For another machine than this (VM_ARCH) the compilers are in a root of this one, where they run, and the VM's root has packages of that
# machine, unpacked and not set up, since no program of theirs runs here.

# What makes the metadata and the module; what the VM runs.
debian_tools=(bc bindgen bison cpio debian-archive-keyring flex "${debian_gcc[@]}" kmod libc6-dev libdw-dev libelf-dev libssl-dev make
    openssl pahole perl python3 rsync rust-src rustc rustfmt xz-utils linux-base "linux-source-$debian_series")
debian_headers=linux-headers-$debian_package
# And the kernel's own two packages, for linux-image wants an initramfs.
debian_runtime=(busybox-static ethtool iperf3 iproute2 iputils-ping linux-perf procps udev)
debian_foreign='' # whether it is another machine's
case $arch in
amd64)
    debian_tools+=("$debian_headers")
    debian_runtime+=(qemu-system-x86)
    ;;
*)
    debian_foreign=1
    debian_headers+=:$arch
    debian_runtime+=(ca-certificates kmod mawk python3 qemu-system-arm)
    ;;
esac

debian_identity() {
    {
        cat "$debian_root/.vhost-net-packages"
        echo "${debian_tools[*]} $debian_headers ${debian_runtime[*]}"
    } 2>&1 | sha256sum | cut -d ' ' -f 1
}

debian_is_ready() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(debian_identity)" ] && [ "$(cat "$kdir.release")" = "$(debian_release)" ] &&
        [ -z "$(missing_packages)" ] && has_virtme
}

# The root does not follow the archive by itself: each new kernel takes minutes.
debian_report() {
    local age=
    [ -z "$(find "$debian_root/.vhost-net-packages" -mtime +30)" ] ||
        age="; to look for a newer one, for the first time in a month: make kernel UPDATE=1"
    echo "Debian's kernel $(cat "$kdir.release") is ready in $kdir$age" >&2
}

# What in_debian needs to reach the archive: the host's, as it is today.
debian_network() {
    cp -L /etc/resolv.conf /etc/hosts "$debian_tools_root/etc/"
}

step_update() {
    debian_network
    in_debian apt-get update && in_debian apt-get -y --with-new-pkgs upgrade || {
        echo "Could not bring the root of Debian $debian_suite up to date: is the network there?" >&4
        return 1
    }
    if [ -n "$debian_foreign" ]; then
        rm -f "$debian_root/.vhost-net-packages"
    else
        touch "$debian_root/.vhost-net-packages"
    fi
}

step_root() {
    [ ! -e "$debian_tools_root/.vhost-net-packages" ] || return 0
    [ "$(id -u)" -eq 0 ] || {
        echo "Debian's kernels need root, for chroot; VM_KERNEL=base does not" >&4
        return 1
    }
    "$root/scripts/make-root" "$debian_suite" amd64 "$debian_tools_root" "$root/scripts/debian-preferences" "${debian_tools[@]}" || {
        echo "Could not make a root of Debian $debian_suite: is the network there?" >&4
        return 1
    }
    echo "${debian_tools[*]}" >"$debian_tools_root/.vhost-net-packages"
}

# The root of another machine, with all that is in it, or nothing if it is there.
make_foreign_root() {
    local packages=("${debian_runtime[@]}" "linux-binary-$(debian_release)" "linux-modules-$(debian_release)")
    [ "$(cat "$debian_root/.vhost-net-packages" 2>/dev/null)" != "${packages[*]}" ] || return 0
    "$root/scripts/make-root" --unpacked "$debian_suite" "$arch" "$debian_root" "$root/scripts/debian-preferences" "${packages[@]}" &&
        depmod -b "$debian_root" "$(debian_release)" &&
        echo "${packages[*]}" >"$debian_root/.vhost-net-packages"
}

# The newest kernel of this flavour that is installed in the root.
debian_release() {
    dpkg-query --root="$debian_tools_root" -W -f '${Depends}\n' "$debian_headers" |
        grep -o 'linux-headers-[^ ,]*' | sed 's/^linux-headers-//' | head -n 1
}

in_debian() {
    "$root/scripts/in-debian" "$@"
}

debian_install() {
    local headers
    debian_network
    # What comes now may lift the source of all flavours, which goes with headers of its version only.
    mapfile -t headers < <(dpkg-query --root="$debian_tools_root" -W -f '${db:Status-Status} ${Package}:${Architecture}\n' 'linux-headers-[a-z]*' 2>/dev/null |
        sed -n 's/^installed //p')
    set -- "$@" ${headers[@]+"${headers[@]}"}
    # The package lists are those of the day when the root was made.
    in_debian apt-get -y install "$@" || { in_debian apt-get update && in_debian apt-get -y install "$@"; }
}

step_metadata() {
    local pid status=0
    if [ -n "$debian_foreign" ]; then
        debian_network
        cp "$root/scripts/debian-preferences" "$debian_tools_root/etc/apt/preferences.d/kernel"
        in_debian sh -c 'dpkg --print-foreign-architectures | grep -qx "$0" || { dpkg --add-architecture "$0" && apt-get update; }' "$arch"
    fi
    # Another flavour's root may lack this one's headers.
    in_debian sh -c '! dpkg-query -W -f "\${db:Status-Status}\n" "$@" 2>&1 | grep -qvx installed' - "${debian_tools[@]}" "$debian_headers" ||
        debian_install "${debian_tools[@]}" "$debian_headers"
    mkdir -p "${kdir%/*}"
    debian_release >"$kdir.release"
    in_debian dkms/prepare-kernel "$(debian_release)" "$kdir" 2>"$kdir.reason" &
    pid=$!
    # Not before the other is over, whatever becomes of this.
    if [ -n "$debian_foreign" ]; then
        make_foreign_root || status=$?
    else
        debian_install "${debian_runtime[@]}" "linux-binary-$(debian_release)" "linux-modules-$(debian_release)" || status=$?
    fi
    wait $pid || {
        echo "In $debian_tools_root: $(tail -n 1 "$kdir.reason")" >&4
        cat "$kdir.reason"
        return 1
    }
    [ $status -eq 0 ] || {
        echo "Could not install in the root of Debian $debian_suite: ${debian_runtime[*]}, or the kernel" >&4
        return 1
    }
}

# The kernel of -cloud was built without 9p, by which a VM sees its root: as modules, from the kernel's own source.
make_9p() {
    local source=linux-source-$debian_series work=$kdir/.vhost-net-9p modules
    modules=$debian_root/usr/lib/modules/$(debian_release)
    ! grep -q '^CONFIG_9P_FS=' "$kdir/.config" || return 0
    rm -rf "$work"
    mkdir -p "$work"
    tar -C "$work" --strip-components=1 -xJf "$debian_root/usr/src/$source.tar.xz" "$source/net/9p" "$source/fs/9p"
    echo 'obj-m += net/9p/ fs/9p/' >"$work/Makefile"
    # shellcheck disable=SC2046  # words
    in_debian make -C "$kdir" M="$work" $(cat "$kdir/.vhost-net-toolchain") \
        CONFIG_NET_9P=m CONFIG_NET_9P_VIRTIO=m CONFIG_9P_FS=m modules
    mkdir -p "$modules/updates"
    cp "$work"/{net,fs}/9p/*.ko "$modules/updates/"
    in_debian depmod "$(debian_release)"
}

# The modules that the root's file system and the console need, for Debian's kernel has none of them built in.
step_initramfs() {
    local work
    make_9p
    work=$(mktemp -d)
    install "$root/tests/vm/root-init" "$work/init"
    "$root/tests/vm/make-initramfs" "$work" "$kdir/.vhost-net-initramfs" "${vm_modules[@]}"
    rm -rf "$work"
}

# lock_root DESCRIPTOR FOLDER
lock_root() {
    flock -n "$1" || {
        echo "A VM or a build is using $2; waiting for its end." >&2
        flock "$1"
    }
}

debian_main() {
    step_count=$((5 + (${UPDATE:-0} == 1)))
    step_logs=$cache/logs/$flavour-$arch
    if [ "${1:-}" = --print ]; then
        [ -e "$stamp" ] || fail "the kernel $flavour${debian_foreign:+ of $arch} is not set up yet; 'make kernel VM_KERNEL=$flavour${debian_foreign:+ VM_ARCH=$arch}' does that"
        echo "$kdir"
        return
    fi
    [ "${UPDATE:-}" != 1 ] || rm -f "$stamp"
    if debian_is_ready; then
        debian_report
        return
    fi
    mkdir -p "$cache/debian"
    exec 9>"$cache/debian/lock"
    flock -n 9 || {
        echo "Another make kernel is at work; waiting for it." >&2
        flock 9
    }
    # By another one, meanwhile.
    ! debian_is_ready || return 0
    # VMs run from it, and in-debian. Those are its own here.
    exec 6>>"$debian_tools_root.lock"
    lock_root 6 "$debian_tools_root"
    if [ -n "$debian_foreign" ]; then
        exec 5>>"$debian_root.lock"
        lock_root 5 "$debian_root"
    fi
    export debian_root_locked=1
    echo "Setting up Debian's own kernel in $cache; a first run takes about 6 minutes." >&2
    step 'install Debian packages' step_packages
    step 'install virtme-ng' step_virtme
    step "make a root of Debian $debian_suite" step_root
    rm -f "$stamp"
    [ "${UPDATE:-}" != 1 ] || step "look for newer packages" step_update
    step "make the kernel's Rust metadata, and install the kernel" step_metadata
    step 'make an initramfs' step_initramfs
    debian_identity >"$stamp.part"
    mv "$stamp.part" "$stamp"
    debian_report
}
