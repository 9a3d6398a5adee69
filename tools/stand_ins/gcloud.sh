#!/bin/bash
cd @FOLDER@
case "$*" in
  *"queued-resources create"*) echo create >> calls; [[ "$*" == *--spot* && "$*" == *startup-script=startup.sh* ]] ;;
  *"queued-resources delete"*) echo delete >> calls; [[ "$*" == *--force* ]] ;;
  *"queued-resources describe"*) head -n 1 states; sed -i 1d states ;;
  *"storage ls"*) test ! -s states ;;
  *) exit 2 ;;
esac
