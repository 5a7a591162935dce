// The AI SDK with its four providers.
import { MODEL, PERSON, TOOLS, called, isJson, load } from './tools.mjs'

const ai = await load('ai')
const { createOpenAI } = await load('@ai-sdk/openai')
const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')
const { createOpenResponses } = await load('@ai-sdk/open-responses')

export function clients(url) {
  const given = { baseURL: url, apiKey: 'none' }
  const openai = createOpenAI(given)
  const compatible = createOpenAICompatible({ ...given, name: 'local', supportsStructuredOutputs: true, includeUsage: true })
  const open = createOpenResponses({ ...given, name: 'local', url: `${url}/responses` })
  // A model whose name is not OpenAI's is sent no effort, and its system message as such, unless the provider is told.
  const reasons = { forceReasoning: true, systemMessageMode: 'system' }
  const over = (model, key, told = {}) => (flow, stream) => run(model, { key, told }, flow, stream)
  return {
    'ai-sdk openai': over(openai(MODEL), 'openai', reasons),
    'ai-sdk openai chat': over(openai.chat(MODEL), 'openai', reasons),
    'ai-sdk compatible': over(compatible(MODEL), 'local'),
    'ai-sdk open-responses': over(open(MODEL), 'local'),
  }
}

function chooseOptions(flow, { key, told }) {
  const options = { temperature: flow.temperature ?? 0, maxRetries: 0, stopWhen: ai.stepCountIs(5) }
  if (flow.system) options.system = flow.system
  if (flow.max_tokens) options.maxOutputTokens = flow.max_tokens
  if (flow.stop) options.stopSequences = flow.stop
  if (flow.effort) options.providerOptions = { [key]: { ...told, reasoningEffort: flow.effort } }
  if (flow.schema) options.output = ai.Output.object({ schema: PERSON })
  if (flow.json_object) options.output = ai.Output.json()
  return options
}

async function run(model, provider, flow, stream) {
  const calls = []
  const tools = flow.tools ? Object.fromEntries(Object.entries(TOOLS).map(([name, t]) => [name, ai.tool({
    description: t.description, inputSchema: t.shape, execute: async (given) => called(calls, name, given) })])) : undefined
  const options = { model, tools, ...chooseOptions(flow, provider) }
  let messages = []
  let made
  for (const content of flow.asks) {
    messages = [...messages, { role: 'user', content }]
    let trouble = null
    made = stream
      ? ai.streamText({ ...options, messages, onError: ({ error }) => { trouble = error } })
      : await ai.generateText({ ...options, messages })
    if (stream) await made.consumeStream({ onError: (error) => { trouble ??= error } })
    if (trouble) throw trouble
    messages = [...messages, ...(await made.response).messages]
  }
  return {
    text: await made.text,
    reasoning: await made.reasoningText ?? '',
    calls,
    data: isJson(flow) ? await made.output : null,
    finish: await made.finishReason,
    output_tokens: (await made.usage).outputTokens,
  }
}
