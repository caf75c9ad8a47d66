# shellcheck shell=bash  # sourced
# Debian packages that are missing, and installing them, as root or by way of sudo. The lists are lines of `name`, or of
# `name minimum-version suite`.

# Reads a list. Prints the arguments for apt-get install that bring what is not there, and nothing when all is.
missing_of() {
    local status name minimum suite version
    status=$(dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' 2>/dev/null | grep ' installed$' || true)
    while read -r name minimum suite; do
        version=$(awk -v name="$name" '$1 == name { print $2; exit }' <<<"$status")
        if [ -z "$version" ] || { [ -n "$minimum" ] && dpkg --compare-versions "$version" lt "$minimum"; }; then
            echo "$name${suite:+/$suite}"
        fi
    done
}

# Installs what missing_of printed. For a step: why it failed is told to descriptor 4.
install_missing() {
    [ $# -gt 0 ] || return 0
    local root_command=() suite packages
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "Not root, and no sudo here. Please install: $*" >&4
            return 1
        }
        root_command=(sudo -n VHOST_NET_CACHE="$cache")
        # Whose these are is who makes them first, and not only root needs them.
        mkdir -p "$cache/apt"
        : >>"$cache/apt/lock"
    fi
    "${root_command[@]}" "$root/scripts/apt" host update || {
        echo "Could not fetch the package lists of Debian and its backports: is the network there?" >&4
        return 1
    }
    # A package from another suite may need others from there too: apt takes them when that suite is the target.
    for suite in '' $(printf '%s\n' "$@" | sed -n 's|.*/||p' | sort -u); do
        mapfile -t packages < <(printf '%s\n' "$@" | awk -F/ -v suite="$suite" '$2 == suite { print $1 }')
        [ ${#packages[@]} -gt 0 ] || continue
        "${root_command[@]}" "$root/scripts/apt" host ${suite:+-t "$suite"} --no-install-recommends install \
            "${packages[@]}" || {
            echo "Could not install the Debian packages ${packages[*]}" >&4
            return 1
        }
    done
}
