#!/usr/bin/env bash
# Ensure the programs that tests drive: chromium (the report's page), rsync (a model that the controller sends), docker-registry
# (what is pulled), minisign (what is signed), openssl (certificates of test servers), ssh and ssh-keygen (test hosts) and, on x86-64, an
# emulator for arm64 (its image is built and run). Installs Debian's packages where they are missing.
set -euo pipefail

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly BINFMT=/proc/sys/fs/binfmt_misc

missing=()
for name in chromium rsync docker-registry minisign openssl; do
    command -v "$name" >/dev/null 2>&1 || missing+=("$name")
done
for name in ssh ssh-keygen; do
    command -v "$name" >/dev/null 2>&1 || missing+=(openssh-client)
done
if [ "$(uname -m)" = x86_64 ]; then
    command -v qemu-aarch64-static >/dev/null 2>&1 || missing+=(qemu-user-static)
    # update-binfmts itself is in a folder that is on root's PATH alone.
    [ -x /usr/sbin/update-binfmts ] || missing+=(binfmt-support)
fi
if [ ${#missing[@]} -gt 0 ]; then
    apt_refresh "${missing[*]} missing here, which tests drive"
    apt_install "${missing[*]} missing here, which tests drive" "${missing[@]}"
fi
# Without systemd this is not mounted, and the package could not register its emulator with the kernel.
if [ "$(uname -m)" = x86_64 ] && [ ! -e "$BINFMT/qemu-aarch64" ]; then
    [ -e "$BINFMT/register" ] || as_root mount -t binfmt_misc binfmt_misc "$BINFMT"
    [ -e "$BINFMT/qemu-aarch64" ] || as_root /usr/sbin/update-binfmts --enable qemu-aarch64
fi
