#!/usr/bin/env bash
# What does a CI pipeline do with a checkpoint? One function a job; the workflows and `make ci-example` call these alone.
#
#   examples/ci/steps.sh export | key SM | build SM | validate | publish | all
#
# From the environment, with the defaults of `make ci-example`:
#   CHECKPOINT  Hugging Face directory             WORK     where everything is written
#   LIMITS      options of `qv-export build`       SMS      architectures, for `all`
set -euo pipefail

CHECKPOINT=${CHECKPOINT:-models/qwen2-vl-tiny}
WORK=${WORK:-build/ci}
SMS=${SMS:-80 89}
LIMITS=${LIMITS:---max-patches 1024 --max-segments 8 --max-batch 2 --max-context 512}
QV_EXPORT=${QV_EXPORT:-qv-export}

BUNDLE=$WORK/bundle
read -r -a limits <<< "$LIMITS"

# The bundle, and its graphs at a glance.
export_bundle() {
    mkdir -p "$WORK"
    "$QV_EXPORT" export "$CHECKPOINT" -o "$BUNDLE"
    "$QV_EXPORT" inspect "$BUNDLE" --html "$WORK/bundle.html"
}

# The key of an architecture's engine: what a CI cache is kept under. `--check` exits 1 where the engine is missing.
key() {
    { "$QV_EXPORT" build "$BUNDLE" --target tensorrt-rtx --sm "$1" "${limits[@]}" --check --json || test $? -eq 1; } |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["key"])'
}

# One architecture's engine, on a machine without a GPU. Nothing happens where the cache brought it back.
build() {
    "$QV_EXPORT" build "$BUNDLE" --target tensorrt-rtx --sm "$1" "${limits[@]}" --plan
    "$QV_EXPORT" build "$BUNDLE" --target tensorrt-rtx --sm "$1" "${limits[@]}"
    "$QV_EXPORT" inspect "$BUNDLE/engines/$(key "$1")" --html "$WORK/engine-sm$1.html"
}

# Does the bundle say what the PyTorch reference says? Exit code 1 if not; the report is written either way.
validate() {
    "$QV_EXPORT" validate "$BUNDLE" --level standard --report "$WORK/report"
}

# A cache may bring back engines of an older bundle or library: nobody could load them.
remove_stale_engines() {
    "$QV_EXPORT" inspect "$BUNDLE" --json |
        python3 -c 'import json, sys
for engine in json.load(sys.stdin)["engines"]:
    if engine["stale"]: print(engine["directory"], end="\0")' |
        xargs -0 --no-run-if-empty rm -r
}

# What is handed on: bundle with engines, validation report, pages.
publish() {
    remove_stale_engines
    tar -C "$WORK" --exclude='.*' -cf "$WORK/qv-export-bundle.tar" bundle
    tar -C "$WORK" -czf "$WORK/qv-export-report.tar.gz" report bundle.html
}

all() {
    export_bundle
    for sm in $SMS; do build "$sm"; done
    validate
    publish
}

case ${1:-} in
    export) export_bundle ;;
    key | build)
        [[ -n ${2:-} ]] || { echo "$1 needs an architecture, such as: $0 $1 89" >&2; exit 2; }
        "$1" "$2"
        ;;
    validate | publish | all) "$1" ;;
    *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
