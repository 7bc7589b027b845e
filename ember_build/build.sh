#!/bin/bash
# Turns a checkout of a frame player into a folder of static files. The same script runs in the container and in the
# local builder, so every path comes from the environment:
#
#   CHECKOUT_DIR      the player's source; is only read
#   WORK_DIR          scratch on a fast disk, empty or not there yet (in `build` alone: what `dependencies` left there)
#   OUTPUT_DIR        receives the distribution
#   STUDY_PREFIX      where the study will be served: /studies/{uuid}/
#   ENVIRONMENT_FILE  template of the player's .env: names, each with a default; the values come from the environment
#   DEPENDENCIES_DIR  optional: a folder with the node_modules of an earlier build with the same lock files; with
#                     INSTALLED=yes they are, with bower_components, all that an installation would bring
#   YARN_CACHE_FOLDER optional: yarn's download cache, which several builds may share
#
# usage: build.sh [dependencies|build|all]    `dependencies` needs the network, `build` does not; `all` does both
set -euo pipefail

# The names that a player may learn; the bundle is public, and so is all that it learns.
readonly allowed_names='SENTRY_DSN PIPE_ACCOUNT_HASH PIPE_ENVIRONMENT S3_REGION S3_BUCKET S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY'

step() {
    printf '==> %s\n' "$*"
}

fail() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

# Install scripts of packages have no business with the values: whoever needs one reads it when the player is built.
without_values() (
    # shellcheck disable=SC2086  # one word per name
    unset $allowed_names
    exec "$@"
)

copy_checkout() {
    step 'copy the checkout'
    mkdir -p "$WORK_DIR"
    cp -R "$CHECKOUT_DIR/." "$WORK_DIR/"
    chmod -R u+rwX "$WORK_DIR"
    cd "$WORK_DIR"
    # An old build that happens to lie in the repository must never pass for the new one.
    rm -rf dist
}

take_stored_dependencies() {
    local name
    for name in node_modules bower_components; do
        if [ -d "$DEPENDENCIES_DIR/$name" ]; then
            step "take $name of an earlier build with the same lock files, nothing to install"
            # Of 75,000 files, in half the time of `cp -a`: one reads while the other writes.
            tar --create --directory "$DEPENDENCIES_DIR" "$name" | tar --extract --preserve-permissions
        fi
    done
    [ -e .bowerrc ] || mkdir -p bower_components
}

# Only what a lock file pins: bower has none, so its packages are installed anew each time.
copy_earlier_dependencies() {
    if [ -n "${DEPENDENCIES_DIR:-}" ] && [ -d "$DEPENDENCIES_DIR/node_modules" ] && [ ! -e node_modules ]; then
        step 'copy node_modules of an earlier build with the same lock files'
        cp -a "$DEPENDENCIES_DIR/node_modules" node_modules
    fi
}

put_prefix() {
    step "put the study's prefix in place: $STUDY_PREFIX"
    # It is written into JavaScript, and an address that does not end in a slash would glue itself to the file's name.
    [[ $STUDY_PREFIX =~ ^/([A-Za-z0-9._~-]+/)+$ ]] ||
        fail "STUDY_PREFIX is '$STUDY_PREFIX', but must look like /studies/{uuid}/"
    [ -f ember-cli-build.js ] || fail 'the player has no ember-cli-build.js, so it is not an Ember app that can be built here'

    local empty_prepend="(prepend['\"]?[[:space:]]*:[[:space:]]*)(''|\"\")"
    if grep -Eq "$empty_prepend" ember-cli-build.js; then
        # Older players: an empty prefix waits to be filled in.
        sed -E -i "s#$empty_prepend#\\1'$STUDY_PREFIX'#" ember-cli-build.js
    elif grep -Rqs PREPEND_FINGERPRINT ember-cli-build.js config; then
        # Newer players read the variable that is exported below.
        :
    else
        fail "ember-cli-build.js has neither fingerprint: { prepend: '' } to fill in nor reads PREPEND_FINGERPRINT," \
            'so the study would be built for the wrong address; add one of them'
    fi
}

put_environment() {
    step 'put the environment file in place'
    local line name value
    rm -f .env
    (umask 077 && : > .env)
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '' | '#'*) continue ;;
        esac
        name=${line%%=*}
        [[ " $allowed_names " == *" $name "* ]] || fail "the environment file names $name, which no player may learn"
        value=${!name:-${line#*=}}
        # Said without the value: it may be a secret.
        [[ $value != *$'\n'* ]] || fail "the value of $name has more than one line"
        printf '%s=%s\n' "$name" "$value" >> .env
    done < "$ENVIRONMENT_FILE"
}

install_dependencies() {
    step 'yarn install --pure-lockfile'
    # Two yarns that fill one cache at the same time spoil it for each other: they take turns.
    without_values yarn install --pure-lockfile --non-interactive \
        ${YARN_CACHE_FOLDER:+--mutex "file:$YARN_CACHE_FOLDER.mutex"}
    if [ -f bower.json ]; then
        step 'bower install --allow-root'
        without_values bower install --allow-root
    fi
    # ember-cli of those years wants the folder even where nothing is in it.
    [ -e .bowerrc ] || mkdir -p bower_components
}

build_player() {
    step 'ember build --environment=production'
    ember build --environment=production
    [ -d dist ] || fail 'ember build ended without an error, but made no dist folder'
    [ -n "$(ls -A dist)" ] || fail 'ember build ended without an error, but its dist folder is empty'
    step 'copy dist to the output folder'
    mkdir -p "$OUTPUT_DIR"
    cp -R dist/. "$OUTPUT_DIR/"
}

for name in CHECKOUT_DIR WORK_DIR OUTPUT_DIR STUDY_PREFIX ENVIRONMENT_FILE; do
    [ -n "${!name:-}" ] || fail "$name is not set; the head of this script says what it is"
done
export PREPEND_FINGERPRINT=$STUDY_PREFIX

phase=${1:-all}
case $phase in
    dependencies | all)
        copy_checkout
        put_prefix
        if [ "${INSTALLED:-}" = yes ]; then
            take_stored_dependencies
        else
            copy_earlier_dependencies
            install_dependencies
        fi
        ;;
    build)
        cd "$WORK_DIR"
        ;;
    *)
        fail "unknown phase '$phase': dependencies, build or all"
        ;;
esac
case $phase in
    build | all)
        put_environment
        build_player
        ;;
esac
