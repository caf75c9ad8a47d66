# shellcheck shell=bash  # sourced
# Runs the steps of a longer job: says which one of how many it is at and how long each took, keeps its output in a file.
# The caller sets step_count and step_logs (a folder).

step_number=0

# step NAME COMMAND...: stops the whole job when COMMAND fails. COMMAND may write one line for the user to fd 4.
step() {
    local name=$1 start=$SECONDS
    shift
    step_number=$((step_number + 1))
    local log=$step_logs/${1#step_}.log status
    printf 'step %d of %d: %s ... ' "$step_number" "$step_count" "$name" >&2
    mkdir -p "$step_logs"
    # Not in an `if`, which would switch off `set -e` inside the function that is called.
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 4>"$log.reason" 5>&- 6>&- 9>&- </dev/null
    status=$?
    set -e
    if [ $status -eq 0 ]; then
        echo "done ($((SECONDS - start)) s)" >&2
        rm -f "$log.reason"
        return
    fi
    echo "FAILED after $((SECONDS - start)) s" >&2
    if [ -s "$log.reason" ]; then
        cat "$log.reason" >&2
    else
        tail -n 15 "$log" >&2
    fi
    rm -f "$log.reason"
    echo "The full log is $log" >&2
    exit 1
}
