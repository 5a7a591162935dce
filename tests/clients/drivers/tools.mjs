// The functions and the schema that every client is given. Packages are those of ../node.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const need = createRequire(new URL('../node/', import.meta.url))
export const load = async (name) => import(pathToFileURL(need.resolve(name)).href)
const { z } = await load('zod')

export const MODEL = 'gpt-oss-20b'
export const TOOLS = {
  get_weather: { description: 'Weather of a city.', shape: z.object({ city: z.string() }), run: ({ city }) => `sunny in ${city}` },
  get_time: { description: 'The time of day.', shape: z.object({}), run: () => 'noon' },
}
export const PERSON = z.object({ name: z.string(), age: z.number().int() })
export const schemaOf = (shape) => z.toJSONSchema(shape)
export const isJson = (flow) => Boolean(flow.schema || flow.json_object)
export const pick = (flow, ...names) => Object.fromEntries(names.filter((name) => name in flow).map((name) => [name, flow[name]]))

export function called(calls, name, given) {
  calls.push([name, given])
  return TOOLS[name].run(given)
}
