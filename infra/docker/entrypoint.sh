#!/usr/bin/env bash
# Entry of the image: a command is run as it is; "executor" is what Spark on Kubernetes asks of the pods it makes. The
# pip package of Spark, unlike its own images, has no such script. The environment is set by Spark (its
# BasicExecutorFeatureStep).
set -euo pipefail

[ "${1:-}" = executor ] || exec "$@"

options=()
while read -r name; do
    options+=("${!name}")
done < <(compgen -A variable | grep '^SPARK_JAVA_OPT_' | sort -t_ -k4 -n)
exec java "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
    -cp "$SPARK_CONF_DIR:$SPARK_HOME/jars/*${SPARK_CLASSPATH:+:$SPARK_CLASSPATH}" \
    org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
    --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
    --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
    --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
