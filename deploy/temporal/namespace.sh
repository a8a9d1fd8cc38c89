#!/bin/sh
# The namespace, how long it keeps closed runs, and the search attributes that the worker asks for at its start.
set -eu
until temporal operator cluster health; do sleep 2; done

if temporal operator namespace describe --namespace "$TEMPORAL_NAMESPACE" > /dev/null 2>&1; then
  temporal operator namespace update --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"
else
  temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"
fi

for name in RunbookStage RunbookPhase RunbookGate RunbookSeverity; do
  temporal operator search-attribute create --namespace "$TEMPORAL_NAMESPACE" --name "$name" --type Keyword
done
