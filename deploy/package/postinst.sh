#!/bin/sh
# After an installation or an upgrade, of the deb and of the rpm.
set -e

# Debian says abort-* when it takes a failed step back: everything is there.
case "$1" in
  abort-*) exit 0 ;;
esac

if ! getent group outbox-relay >/dev/null; then
  groupadd --system outbox-relay
fi
if ! getent passwd outbox-relay >/dev/null; then
  nologin=$(command -v nologin || echo /bin/false)
  useradd --system --gid outbox-relay --no-create-home --home-dir /nonexistent --shell "$nologin" \
    --comment "Outbox Relay" outbox-relay
fi

# The packages cannot name a group that is not there yet. What an operator has
# changed stays: only files of root's group are taken care of.
for path in /etc/outbox-relay /etc/outbox-relay/relay.yaml /etc/outbox-relay/relay.env; do
  if [ -e "$path" ] && [ "$(stat -c %g "$path")" = 0 ]; then
    chgrp outbox-relay "$path"
  fi
done

if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  # What runs goes on with the new version; nothing is started that did not run.
  systemctl try-restart outbox-relay.service 'outbox-relay@*.service' || true
fi
