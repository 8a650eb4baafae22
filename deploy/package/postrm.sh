#!/bin/sh
# After a removal. Only `apt purge` takes what an operator has written.
set -e

if [ "$1" = purge ]; then
  rm -rf /etc/outbox-relay
  if getent passwd outbox-relay >/dev/null; then
    userdel outbox-relay || true
  fi
  if getent group outbox-relay >/dev/null; then
    groupdel outbox-relay || true
  fi
fi

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
