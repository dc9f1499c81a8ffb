# docker build -t nanogpt .
# docker run --rm -v "$PWD/data:/nanogpt/data" -v "$PWD/out:/nanogpt/out" nanogpt
# On a GPU: build with --build-arg BASE=IMAGE, a CUDA image that has PyTorch, and run with --gpus all.
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /nanogpt
# with --system-site-packages a PyTorch of the base image is used, if constraints.txt allows it
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY . .
RUN pip install --no-cache-dir -e . -c constraints.txt
ENTRYPOINT ["python"]
CMD ["recipes/shakespeare.py", "--resume=auto"]
