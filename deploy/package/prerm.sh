#!/bin/sh
# Before a removal, and before an upgrade, which the services outlive: dpkg says
# "upgrade", rpm 1.
set -e

case "$1" in
  remove | 0)
    if [ -d /run/systemd/system ]; then
      systemctl disable --now outbox-relay.service || true
      systemctl stop 'outbox-relay@*.service' || true
    fi
    ;;
esac
