# spectral-mlops as a container.
#
#   docker build -t spectral-mlops .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:$PWD" -w "$PWD" spectral-mlops
#
# The folder is mounted under its own name because MLflow stores absolute paths. Without
# --user the job runs as uid 10001, which must then own the mounted folder.
# On Linux a plain build takes PyTorch with its CUDA libraries (several GB). For the
# small CPU build give PyTorch's own index:
#
#   docker build -t spectral-mlops \
#     --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim

LABEL org.opencontainers.image.title="spectral-mlops" \
      org.opencontainers.image.description="Group-wise gradient, activation and adjoint spectra during training, tracked in MLflow"

# tini is PID 1: the kernel drops SIGTERM for a PID 1 without a handler, such as
# Python, and `docker stop` would wait ten seconds and then kill. No version is
# pinned since Debian's mirrors keep the newest only.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/*

# pip reads this variable itself; an ARG leaves nothing in the image.
ARG PIP_EXTRA_INDEX_URL=

# Dependencies before sources: editing the code does not install PyTorch again.
WORKDIR /src
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/requirements.txt \
 && pip install --no-cache-dir --root-user-action ignore -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt
COPY . .
RUN pip install --no-cache-dir --root-user-action ignore --no-deps .

# HOME and LOGNAME serve any uid given by --user, which has no passwd entry: caches
# of matplotlib and nilearn go to /tmp, and MLflow can name a user.
ENV HOME=/tmp \
    LOGNAME=spectral \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home --home-dir /tmp spectral \
 && install -d -o spectral -g spectral /out
USER 10001
WORKDIR /out
VOLUME /out

ENTRYPOINT ["tini", "--", "spectral-mlops"]
CMD ["train"]
