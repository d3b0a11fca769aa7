"""LlamaIndex's embeddings against an engine: `llama_index_client.py URL KEY < TEXTS`, vectors to stdout."""

import asyncio
import json
import sys

from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference


async def main():
    texts = json.load(sys.stdin)
    url, key = sys.argv[1:]
    embeddings = TextEmbeddingsInference(
        model_name="sentence-transformers/all-MiniLM-L6-v2",
        base_url=url,
        embed_batch_size=8,
        auth_token=key,
        text_instruction="",
        query_instruction="",
    )
    answers = {
        "documents": embeddings.get_text_embedding_batch(texts),
        "document": embeddings.get_text_embedding(texts[0]),
        "query": embeddings.get_query_embedding(texts[0]),
        "async documents": await embeddings.aget_text_embedding_batch(texts),
        "async query": await embeddings.aget_query_embedding(texts[0]),
    }
    json.dump(answers, sys.stdout)


asyncio.run(main())
