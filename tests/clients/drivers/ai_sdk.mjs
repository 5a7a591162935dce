// The AI SDK with its five providers.
import { RESULTS } from './tool_types.mjs'
import { MODEL, PERSON, TOOLS, called, isJson, load } from './tools.mjs'

const ai = await load('ai')
const { createOpenAI } = await load('@ai-sdk/openai')
const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')
const { createAnthropic } = await load('@ai-sdk/anthropic')
const { createOpenResponses } = await load('@ai-sdk/open-responses')

export function clients(url) {
  const given = { baseURL: url, apiKey: 'none' }
  const openai = createOpenAI(given)
  const compatible = createOpenAICompatible({ ...given, name: 'local', supportsStructuredOutputs: true, includeUsage: true })
  const open = createOpenResponses({ ...given, name: 'local', url: `${url}/responses` })
  // A model whose name is not OpenAI's is sent no effort, and its system message as such, unless the provider is told.
  const reasons = { forceReasoning: true, systemMessageMode: 'system' }
  const over = (make, key, told = {}) => (flow, stream) => run(make(flow.model ?? MODEL), { key, told }, flow, stream)
  return {
    'ai-sdk openai': over(openai, 'openai', reasons),
    'ai-sdk openai stateless': over(openai, 'openai', { ...reasons, store: false }),
    'ai-sdk openai chat': over(openai.chat, 'openai', reasons),
    'ai-sdk compatible': over(compatible, 'local'),
    'ai-sdk anthropic': over(createAnthropic(given), 'anthropic'),
    'ai-sdk open-responses': over(open, 'local'),
  }
}

function chooseOptions(flow, { key, told }) {
  const options = { temperature: flow.temperature ?? 0, maxRetries: 0, stopWhen: ai.stepCountIs(5) }
  if (flow.system) options.system = flow.system
  if (flow.max_tokens) options.maxOutputTokens = flow.max_tokens
  if (flow.top_p) options.topP = flow.top_p
  if (flow.seed) options.seed = flow.seed
  if (flow.presence_penalty) options.presencePenalty = flow.presence_penalty
  if (flow.frequency_penalty) options.frequencyPenalty = flow.frequency_penalty
  if (flow.tool_choice) options.toolChoice = flow.tool_choice
  if (flow.stop) options.stopSequences = flow.stop
  const effort = flow.effort ? { [key === 'anthropic' ? 'effort' : 'reasoningEffort']: flow.effort } : {}
  if (flow.effort || 'store' in told) options.providerOptions = { [key]: { ...told, ...effort } }
  if (flow.schema) options.output = ai.Output.object({ schema: PERSON })
  if (flow.json_object) options.output = ai.Output.json()
  return options
}

function makeTools(tools, calls) {
  const note = (name, given, result) => {
    calls.push([name, given])
    return result
  }
  const own = createOpenAI({ apiKey: 'none' }).tools
  switch (tools) {
    case undefined: return undefined
    case 'custom': return { run_sql: own.customTool({ description: 'Runs SQL.', execute: async (text) => note('run_sql', text, RESULTS.custom) }) }
    case 'local_shell': return { local_shell: own.localShell({
      execute: async ({ action }) => note(tools, action.command, { output: RESULTS.local_shell }) }) }
    case 'shell': return { shell: own.shell({ execute: async ({ action }) => note(tools, action.commands, {
      output: [{ stdout: RESULTS.shell, stderr: '', outcome: { type: 'exit', exitCode: 0 } }] }) }) }
    case 'apply_patch': return { apply_patch: own.applyPatch({
      execute: async ({ operation }) => note(tools, operation, { status: 'completed', output: RESULTS.apply_patch }) }) }
    default: return Object.fromEntries(Object.entries(TOOLS).map(([name, t]) => [name, ai.tool({
      description: t.description, inputSchema: t.shape, execute: async (given) => called(calls, name, given) })]))
  }
}

async function run(model, provider, flow, stream) {
  const calls = []
  const options = { model, tools: makeTools(flow.tools, calls), ...chooseOptions(flow, provider) }
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
