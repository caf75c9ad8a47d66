# shellcheck shell=bash  # sourced by the steps
# What the steps of `make check` share: the project's files, and counting.
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$root" || exit

passed=0
failed=0

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

finish() {
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ] && [ $passed -gt 0 ]
}
