# docker build -t nanogpt .
# mkdir -p data out  # otherwise Docker makes them, as root
# docker run --rm --init --user "$(id -u):$(id -g)" -e HOME=/tmp \
#   -v "$PWD/data:/nanogpt/data" -v "$PWD/out:/nanogpt/out" nanogpt
# On a GPU: build with --build-arg BASE=IMAGE, a CUDA image that has Python, and run with --gpus all.
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /nanogpt
# PIP_BREAK_SYSTEM_PACKAGES: the image is for nothing else
ENV PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1
COPY . .
RUN pip install --no-cache-dir -e . -c constraints.txt
ENTRYPOINT ["python3"]
CMD ["recipes/shakespeare.py", "--resume=auto"]
