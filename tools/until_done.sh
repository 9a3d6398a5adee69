#!/usr/bin/env bash
# Runs a command again until it is done:   tools/until_done.sh COMMAND [ARGUMENT ...]
#
# Ends with the command's exit code when that is 0 (done), 2 (a mistake to mend) or 3 (the numbers were not finite).
# After any other (143 and 130: interrupted and checkpointed; 137, 134: killed) it starts the command again, PAUSE seconds
# later, 10 by default. It gives up after 5 starts in a row that ended within QUICK seconds, 60 by default, other than by
# SIGTERM or SIGINT. A signal to its whole process group ends both: the command saves, and is not started again.
stop= quick=0 code=0
trap 'stop=yes' TERM INT
while [ -z "$stop" ]; do
  began=$SECONDS
  "$@"
  code=$?
  case $code in
    0 | 2 | 3) exit "$code" ;;
    130 | 143) quick=0 ;;
    *) if ((SECONDS - began < ${QUICK:-60})); then quick=$((quick + 1)); else quick=0; fi ;;
  esac
  [ -n "$stop" ] && break
  if ((quick >= 5)); then
    echo "until_done.sh: exit code $code, and $quick quick failures in a row: giving up" >&2
    exit "$code"
  fi
  echo "until_done.sh: exit code $code, starting again in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
