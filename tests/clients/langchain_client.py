"""LangChain's embeddings against an engine: `langchain_client.py URL < TEXTS`, vectors to standard output."""

import asyncio
import json
import sys

from langchain_huggingface import HuggingFaceEndpointEmbeddings


async def main():
    texts = json.load(sys.stdin)
    # `model` must be an id; where it is served is an argument of the call that every request makes
    embeddings = HuggingFaceEndpointEmbeddings(
        model="sentence-transformers/all-MiniLM-L6-v2", model_kwargs={"model": sys.argv[1], "truncate": True}
    )
    answers = {
        "documents": embeddings.embed_documents(texts),
        "query": embeddings.embed_query(texts[0]),
        "async documents": await embeddings.aembed_documents(texts),
        "async query": await embeddings.aembed_query(texts[0]),
    }
    await embeddings.async_client.close()
    json.dump(answers, sys.stdout)


asyncio.run(main())
