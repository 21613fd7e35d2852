# syntax=docker/dockerfile:1

# The relay in a container: no root, no capability, and nothing to write to.
#
#   docker build -t pyrycode-relay .
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges \
#     --ulimit=nofile=20480 --memory=1g --stop-timeout=15 -p 127.0.0.1:8080:8080 pyrycode-relay
#
# docs/install.md has more, under "In a container".

ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY pyrycode_relay pyrycode_relay
COPY twisted twisted
# A virtual environment without pip in it: it is copied whole, and nothing is installed later.
RUN python -m venv --without-pip /opt/relay \
    && pip --python /opt/relay/bin/python install --no-cache-dir /src
# twistd keeps a list of the plugins that it found, and would write it at each start if it could.
RUN /opt/relay/bin/twistd --help >/dev/null \
    && test -s "$(/opt/relay/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/twisted/plugins/dropin.cache"
# For what has to outlive the container (certificates of an ACME CA): mount a volume there.
RUN install -d -o 10001 -g 10001 -m 0700 /var/lib/pyrycode-relay

FROM ${BASE}
COPY --from=build /opt/relay /opt/relay
COPY --from=build --chown=10001:10001 /var/lib/pyrycode-relay /var/lib/pyrycode-relay
ENV PATH=/opt/relay/bin:$PATH
ENV PYTHONDONTWRITEBYTECODE=1
# What the health check probes; another address, or options before it, where CMD is another.
ENV RELAY_PROBE=ws://127.0.0.1:8080
# A number, for orchestrators that want to see without looking inside that it is not root.
USER 10001:10001
WORKDIR /var/lib/pyrycode-relay
EXPOSE 8080
# It drains for 10 s (--drain-timeout): give it more than docker's own 10, as above.
STOPSIGNAL SIGTERM
# Four upgrades a minute of the ten that an address may have; statuses other than 0 and 1 are docker's.
HEALTHCHECK --interval=60s --timeout=15s --start-period=10s --retries=2 \
    CMD pyrycode-relay-probe --quiet --timeout=10 $RELAY_PROBE || exit 1
ENTRYPOINT ["twistd", "--nodaemon", "--pidfile=", "pyrycode-relay"]
# Plain, for a TLS proxy in front. Arguments of `docker run` take the place of this.
CMD ["--insecure-listen=:8080"]
